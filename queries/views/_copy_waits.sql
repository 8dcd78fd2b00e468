-- _copy_waits: do copies of a kind return only when the work before them is
--           done?
-- requires: _stream_calls
-- grain:    one row per run, api, kind of copy and host memory
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   api          VARCHAR  function name
--   copy_kind    VARCHAR  as in cuda_api
--   host_memory  VARCHAR  as in cuda_api
--   is_async     BOOLEAN  the function is one that need not wait
--   waited       BIGINT   calls right behind other work of the device that
--                         lasted longer than a copy does, and left the next
--                         wait for the stream nothing to wait for
--   passed       BIGINT   calls right behind other work after which the next
--                         wait for the stream had to wait
--   waits        BOOLEAN  they wait, as CUDA's manual or the run shows; NULL:
--                         too few calls behind other work to tell
-- caveats:  longer than a copy lasts is 20 us and its bytes at 4 GB/s, the
--           slowest published bandwidth (Tinfoil, 2026-06-23); a wait that had
--           to wait lasts 20 us. It takes 5 calls that show one or the other,
--           and those that show more decide.
CREATE VIEW _copy_waits AS
WITH calls AS (
  SELECT
    run, api, copy_kind, host_memory, is_behind,
    dur_ns > 20000 + coalesce(size_bytes, 0) / 4 AS is_long,
    coalesce(next_wait_ns > 20000, FALSE) AS has_left_work
  FROM _stream_calls
  WHERE "class" = 'copy'
),

counted AS (
  SELECT
    run, api, copy_kind, host_memory,
    contains(api, 'Async') AS is_async,
    count(*) FILTER (
      WHERE is_behind AND is_long AND NOT has_left_work
    ) AS waited,
    count(*) FILTER (WHERE is_behind AND has_left_work) AS passed
  FROM calls
  GROUP BY run, api, copy_kind, host_memory
)

SELECT
  run, api, copy_kind, host_memory, is_async, waited, passed,
  CASE
    WHEN NOT is_async
      THEN coalesce(copy_kind <> 'd2d' AND copy_kind <> 'p2p', TRUE)
    WHEN copy_kind = 'd2h' AND host_memory = 'pageable' THEN TRUE
    WHEN waited + passed >= 5 THEN waited > passed
  END AS waits
FROM counted;
