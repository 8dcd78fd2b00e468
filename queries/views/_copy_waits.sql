-- _copy_waits: do copies of a kind return only when the work before them is
--           done?
-- requires: _stream_calls
-- grain:    one row per run, api, kind of copy and host memory
-- materialize: yes
-- columns:
--   run           VARCHAR  label of the run
--   api           VARCHAR  function name
--   copy_kind     VARCHAR  as in cuda_api
--   host_memory   VARCHAR  as in cuda_api
--   is_async      BOOLEAN  the function is one that need not wait
--   behind        BIGINT   calls right behind other work of the device
--   waited        BIGINT   those that lasted longer than a copy does, and left
--                          the next wait for the stream nothing to wait for
--   passed        BIGINT   those of them after which the next wait for the
--                          stream had to wait
--   waits         BOOLEAN  they wait, as CUDA's manual or the run shows; NULL:
--                          too few calls behind other work to tell
--   waits_source  VARCHAR  manual: CUDA's manual says so; run: calls show it;
--                          NULL as waits
-- caveats:  longer than a copy lasts is 50 us and its bytes at 4 GB/s, the
--           slowest published bandwidth (Tinfoil, 2026-06-23): with probes and
--           caches that are cold a copy that waits for nothing takes 30. A wait
--           that had to wait lasts 20 us. It takes 5 calls that show one or the
--           other, and those that show more decide. For copies that wait it
--           also takes a quarter of those behind work: the others may have come
--           when it was done, but some calls are late on any machine.
CREATE VIEW _copy_waits AS
WITH calls AS (
  SELECT
    run, api, copy_kind, host_memory, is_behind,
    dur_ns > 50000 + coalesce(size_bytes, 0) / 4 AS is_long,
    coalesce(next_wait_ns > 20000, FALSE) AS has_left_work
  FROM _stream_calls
  WHERE "class" = 'copy'
),

counted AS (
  SELECT
    run, api, copy_kind, host_memory,
    contains(api, 'Async') AS is_async,
    count(*) FILTER (WHERE is_behind) AS behind,
    count(*) FILTER (
      WHERE is_behind AND is_long AND NOT has_left_work
    ) AS waited,
    count(*) FILTER (WHERE is_behind AND has_left_work) AS passed
  FROM calls
  GROUP BY run, api, copy_kind, host_memory
),

shown AS (
  SELECT
    run, api, copy_kind, host_memory, is_async, behind, waited, passed,
    CASE
      WHEN NOT is_async
        THEN coalesce(copy_kind <> 'd2d' AND copy_kind <> 'p2p', TRUE)
      WHEN copy_kind = 'd2h' AND host_memory = 'pageable' THEN TRUE
    END AS by_manual,
    CASE
      WHEN waited + passed < 5 THEN NULL
      WHEN waited <= passed THEN FALSE
      WHEN 4 * waited >= behind THEN TRUE
    END AS by_run
  FROM counted
)

SELECT
  run, api, copy_kind, host_memory, is_async, behind, waited, passed,
  coalesce(by_manual, by_run) AS waits,
  CASE
    WHEN by_manual IS NOT NULL THEN 'manual'
    WHEN by_run IS NOT NULL THEN 'run'
  END AS waits_source
FROM shown;
