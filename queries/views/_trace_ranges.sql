-- _trace_ranges: start/end ranges of NVTX, as a trace draws them.
-- requires: nvtx
-- grain:    one row per start/end range of nvtx
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   track           VARCHAR  track of the process: `NVTX ranges` and the domain
--   ts_ns           BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns          BIGINT   length, ns, >= 0; NULL: still open at the end
--   name            VARCHAR  name; NULL: it has none
--   category        VARCHAR  nvtx
--   start_tid       INTEGER  thread that started it
--   end_tid         INTEGER  as in nvtx
--   domain          VARCHAR  as in nvtx
--   nvtx_category   VARCHAR  category of nvtx
--   payload         BIGINT   as in nvtx
--   payload_double  DOUBLE   as in nvtx
CREATE VIEW _trace_ranges AS
SELECT
  run, pid,
  'NVTX ranges' || coalesce(' ' || domain, '') AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  name,
  'nvtx' AS category,
  tid AS start_tid,
  end_tid, domain,
  category AS nvtx_category,
  payload, payload_double
FROM nvtx
WHERE kind = 'start_end';
