-- bounce_paths: which of the three ways around encrypted memory do bytes take,
--           and what does each cost?
-- requires: runs, swiotlb, user_crypto, uvm_crypto, counters
-- grain:    three rows per run, one for each path
-- columns:
--   run           VARCHAR  label of the run
--   answer        VARCHAR  yes: bytes were seen on one of the paths; no: on
--                          none, and all three were recorded; unknown
--   evidence      VARCHAR  what was seen on each, in a sentence
--   path          VARCHAR  swiotlb: the kernel's bounce buffers, for disks,
--                          networks and GPUs not in CC mode; libcuda: the CUDA
--                          driver's own encryption in the program, for pageable
--                          memory and commands; nvidia-uvm: the kernel
--                          driver's, for pinned and managed memory
--   state         VARCHAR  recorded, or not recorded: then the figures are NULL
--   operations    BIGINT   mappings, or calls of a cipher
--   bytes         BIGINT   bytes they cover
--   to_device     BIGINT   those of them that go to the device; NULL: the
--                          direction is not known of any
--   from_device   BIGINT   those that come from it; NULL as to_device
--   copy_ns       BIGINT   sum of the lengths of the copies (swiotlb) or of the
--                          calls, ns; NULL: not known of any
--   gb_per_s      DOUBLE   bytes copied or covered over copy_ns, GB (10^9) a
--                          second; NULL as copy_ns
--   keys          BIGINT   libcuda: requests for the keys that it encrypts
--                          with (GET_KMB); NULL: not looked for, or another
--                          path
--   first_ns      BIGINT   start of the first, ns of CLOCK_MONOTONIC; NULL:
--                          none
-- caveats:  three paths, never one number: never add them up. swiotlb and
--           nvidia-uvm are of the whole machine. A read through swiotlb is
--           mapped once and copied twice. nvidia-uvm also covers push buffers
--           and semaphores. Of libcuda only what OpenSSL does for it is seen;
--           what it encrypts with code of its own is not, but it has then asked
--           for keys, which the source ioctl sees.
WITH bounced AS (
  SELECT
    run,
    count(*) FILTER (op = 'map') AS operations,
    sum(size_bytes) FILTER (op = 'map') AS bytes,
    sum(size_bytes) FILTER (op = 'map' AND direction = 'to_device')
      AS to_device,
    sum(size_bytes) FILTER (op = 'map' AND direction = 'from_device')
      AS from_device,
    count(*) FILTER (op = 'map' AND direction IS NOT NULL) AS directed,
    sum(dur_ns) FILTER (op = 'bounce') AS copy_ns,
    sum(size_bytes) FILTER (op = 'bounce' AND dur_ns IS NOT NULL)
      AS copied_bytes,
    min(ts_ns) AS first_ns
  FROM swiotlb
  GROUP BY run
),

ciphers AS (
  SELECT run, 'libcuda' AS path, direction, size_bytes, dur_ns, ts_ns
  FROM user_crypto
  UNION ALL
  SELECT run, 'nvidia-uvm' AS path, direction, size_bytes, dur_ns, ts_ns
  FROM uvm_crypto
),

found AS (
  SELECT
    run, 'swiotlb' AS path, operations, bytes,
    CASE WHEN directed > 0 THEN coalesce(to_device, 0) END AS to_device,
    CASE WHEN directed > 0 THEN coalesce(from_device, 0) END AS from_device,
    copy_ns, copied_bytes, first_ns
  FROM bounced
  UNION ALL
  SELECT
    run, path,
    count(*) AS operations,
    sum(size_bytes) AS bytes,
    coalesce(sum(size_bytes) FILTER (direction = 'encrypt'), 0) AS to_device,
    coalesce(sum(size_bytes) FILTER (direction = 'decrypt'), 0)
      AS from_device,
    sum(dur_ns) AS copy_ns,
    sum(size_bytes) FILTER (dur_ns IS NOT NULL) AS copied_bytes,
    min(ts_ns) AS first_ns
  FROM ciphers
  GROUP BY run, path
),

paths AS (
  SELECT path, source, place
  FROM (
    VALUES
      ('swiotlb', 'swiotlb', 1),
      ('libcuda', 'user_crypto', 2),
      ('nvidia-uvm', 'uvm_crypto', 3)
  ) AS known(path, source, place)
),

key_totals AS (
  SELECT run, pid, max("value") AS requests
  FROM counters
  WHERE name = 'get_kmb'
  GROUP BY run, pid
),

key_requests AS (
  SELECT run, sum(requests) AS requests
  FROM key_totals
  GROUP BY run
),

looked AS (
  SELECT
    runs.run,
    coalesce(
      key_requests.requests,
      CASE WHEN contains(',' || runs.attached || ',', ',ioctl,') THEN 0 END
    ) AS requests
  FROM runs
  LEFT JOIN key_requests
    ON runs.run = key_requests.run
),

figures AS (
  SELECT
    runs.run, paths.path, paths.place,
    found.run IS NOT NULL
    OR contains(',' || runs.attached || ',', ',' || paths.source || ',')
      AS is_recorded,
    coalesce(found.operations, 0) AS operations,
    coalesce(found.bytes, 0) AS bytes,
    found.to_device, found.from_device, found.copy_ns, found.copied_bytes,
    found.first_ns,
    CASE WHEN paths.path = 'libcuda' THEN looked.requests END AS requests
  FROM runs
  CROSS JOIN paths
  INNER JOIN looked
    ON runs.run = looked.run
  LEFT JOIN found
    ON runs.run = found.run
    AND paths.path = found.path
),

told AS (
  SELECT
    run,
    bool_or(is_recorded AND operations > 0) AS has_seen,
    bool_or(coalesce(requests > 0, FALSE)) AS has_keys,
    bool_and(is_recorded) AS is_whole,
    string_agg(
      path || ': '
      || CASE
        WHEN NOT is_recorded THEN 'not recorded'
        WHEN operations = 0 THEN 'nothing'
        ELSE format(
          '{:.1f} MB in {:,} {}{}',
          bytes / 1e6, operations,
          CASE WHEN path = 'swiotlb' THEN 'mapping(s)' ELSE 'call(s)' END,
          CASE
            WHEN copy_ns IS NOT NULL THEN format(', {:.1f} ms', copy_ns / 1e6)
            ELSE ''
          END
        )
      END
      || CASE
        WHEN requests > 0 THEN format(
          ' ({:,} request(s) for keys: it encrypts)', CAST(requests AS BIGINT)
        )
        ELSE ''
      END,
      '; '
      ORDER BY place
    ) AS evidence
  FROM figures
  GROUP BY run
)

SELECT
  told.run,
  CASE
    WHEN told.has_seen OR told.has_keys THEN 'yes'
    WHEN told.is_whole THEN 'no'
    ELSE 'unknown'
  END AS answer,
  told.evidence,
  figures.path,
  CASE WHEN figures.is_recorded THEN 'recorded' ELSE 'not recorded' END
    AS state,
  CASE WHEN figures.is_recorded THEN figures.operations END AS operations,
  CASE WHEN figures.is_recorded THEN CAST(figures.bytes AS BIGINT) END
    AS bytes,
  CAST(figures.to_device AS BIGINT) AS to_device,
  CAST(figures.from_device AS BIGINT) AS from_device,
  CAST(figures.copy_ns AS BIGINT) AS copy_ns,
  CAST(figures.copied_bytes / nullif(figures.copy_ns, 0) AS DOUBLE)
    AS gb_per_s,
  CAST(figures.requests AS BIGINT) AS "keys",
  figures.first_ns
FROM told
INNER JOIN figures
  ON told.run = figures.run
ORDER BY told.run, figures.place;
