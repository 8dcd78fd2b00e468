-- crypto_by_path: CPU encryption for the GPU, by who does it.
-- requires: uvm_crypto, user_crypto
-- grain:    one row per run, path, process and direction, most bytes first
-- columns:
--   run          VARCHAR  label of the run
--   path         VARCHAR  uvm: nvidia-uvm, for pinned and managed memory;
--                         libcrypto: OpenSSL under the CUDA driver
--   pid          INTEGER  process it ran in
--   direction    VARCHAR  encrypt (to the GPU) or decrypt (from it)
--   calls        BIGINT   calls
--   bytes        BIGINT   bytes they covered
--   total_ns     BIGINT   sum of their lengths, ns; NULL: not known of any
--   p50_ns       BIGINT   median length, ns; NULL as total_ns
--   max_ns       BIGINT   longest, ns; NULL as total_ns
--   bytes_per_s  DOUBLE   bytes over total_ns; NULL as total_ns, or 0 ns
-- caveats:  the paths are different bytes: never add them, nor what passes the
--           kernel's bounce buffers. uvm also covers push buffers and
--           semaphores. What libcuda encrypts with code of its own is in
--           neither.
WITH calls AS (
  SELECT run, 'uvm' AS path, pid, direction, size_bytes, dur_ns
  FROM uvm_crypto
  UNION ALL
  SELECT run, 'libcrypto' AS path, pid, direction, size_bytes, dur_ns
  FROM user_crypto
),

summed AS (
  SELECT
    run, path, pid, direction,
    count(*) AS calls,
    CAST(sum(size_bytes) AS BIGINT) AS bytes,
    CAST(sum(dur_ns) AS BIGINT) AS total_ns,
    quantile_disc(dur_ns, 0.5) AS p50_ns,
    max(dur_ns) AS max_ns,
    CAST(sum(size_bytes) FILTER (dur_ns IS NOT NULL) AS BIGINT) AS timed_bytes
  FROM calls
  GROUP BY run, path, pid, direction
)

SELECT
  run,
  path,
  pid,
  direction,
  calls,
  bytes,
  total_ns,
  p50_ns,
  max_ns,
  timed_bytes * 1e9 / nullif(total_ns, 0) AS bytes_per_s
FROM summed
ORDER BY run, path, bytes DESC, pid, direction;
