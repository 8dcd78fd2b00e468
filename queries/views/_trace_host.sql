-- _trace_host: bounce buffers, page conversions, encryption and counted
--              launches, as a trace draws them.
-- requires: swiotlb, page_conversion, uvm_crypto, user_crypto, cuda_launches
-- grain:    one row per row of these tables
-- columns:
--   run         VARCHAR  label of the run
--   pid         INTEGER  process
--   tid         INTEGER  thread
--   track       VARCHAR  track beside the thread's own: what it is
--   ts_ns       BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns      BIGINT   length, of launches the window's, ns, >= 0; NULL:
--                        still open at the end
--   is_instant  BOOLEAN  its length was not recorded
--   name        VARCHAR  operation, direction, or function of the launches
--   category    VARCHAR  the table
--   device      VARCHAR  as in swiotlb
--   direction   VARCHAR  as in swiotlb
--   size_bytes  BIGINT   as in swiotlb, uvm_crypto and user_crypto
--   pages       BIGINT   as in page_conversion
--   stream      BIGINT   as in cuda_launches
--   calls       BIGINT   as in cuda_launches
--   total_ns    BIGINT   as in cuda_launches
--   max_ns      BIGINT   as in cuda_launches
CREATE VIEW _trace_host AS
SELECT
  run, pid, tid,
  'bounce buffers' AS track,
  ts_ns,
  greatest(coalesce(dur_ns, 0), 0) AS dur_ns,
  dur_ns IS NULL AS is_instant,
  op AS name,
  'swiotlb' AS category,
  device, direction, size_bytes,
  CAST(NULL AS BIGINT) AS pages,
  CAST(NULL AS BIGINT) AS stream,
  CAST(NULL AS BIGINT) AS calls,
  CAST(NULL AS BIGINT) AS total_ns,
  CAST(NULL AS BIGINT) AS max_ns
FROM swiotlb
UNION ALL
SELECT
  run, pid, tid,
  'page conversions' AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  FALSE AS is_instant,
  'to ' || "to" AS name,
  'page_conversion' AS category,
  NULL AS device,
  NULL AS direction,
  NULL AS size_bytes,
  pages,
  NULL AS stream,
  NULL AS calls,
  NULL AS total_ns,
  NULL AS max_ns
FROM page_conversion
UNION ALL
SELECT
  run, pid, tid,
  'nvidia-uvm encryption' AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  FALSE AS is_instant,
  direction AS name,
  'uvm_crypto' AS category,
  NULL AS device,
  NULL AS direction,
  size_bytes,
  NULL AS pages,
  NULL AS stream,
  NULL AS calls,
  NULL AS total_ns,
  NULL AS max_ns
FROM uvm_crypto
UNION ALL
SELECT
  run, pid, tid,
  'libcrypto encryption' AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  FALSE AS is_instant,
  direction AS name,
  'user_crypto' AS category,
  NULL AS device,
  NULL AS direction,
  size_bytes,
  NULL AS pages,
  NULL AS stream,
  NULL AS calls,
  NULL AS total_ns,
  NULL AS max_ns
FROM user_crypto
UNION ALL
SELECT
  run, pid, tid,
  'launches counted' AS track,
  ts_ns,
  CASE WHEN window_ns < 0 THEN 0 ELSE window_ns END AS dur_ns,
  FALSE AS is_instant,
  api AS name,
  'cuda_launches' AS category,
  NULL AS device,
  NULL AS direction,
  NULL AS size_bytes,
  NULL AS pages,
  stream, calls, total_ns, max_ns
FROM cuda_launches;
