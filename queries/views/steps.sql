-- steps: iterations of an engine's loop.
-- requires: _engine_steps, _annotated_steps, _pattern_steps
-- grain:    one row per step
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   step_id    BIGINT   number of the step within its run, from 1, by start
--   engine     VARCHAR  vllm, transformers, or for ranges named `step` the
--                       NVTX domain (`default` for the default domain); for
--                       annotations what made them, as in _step_rules;
--                       `pattern`
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   length of the step's own range, ns; of a pattern the
--                       time to the return of its last call; NULL: not known
--   period_ns  BIGINT   start of the next step of the same engine and thread
--                       less this one's, ns; NULL: the last one, or the loop
--                       paused in between
--   phase      VARCHAR  prefill, decode, mixed, train, or what the program
--                       says; NULL: it does not say
--   requests   BIGINT   requests in the batch; NULL: not told
--   tokens     BIGINT   tokens scheduled; NULL: not told
--   found_by   VARCHAR  nvtx: a range that marks steps; annotation: a range
--                       of a profiler or a framework whose name tells;
--                       pattern: no range, but CUDA calls that repeat
-- caveats:  a run has steps of one found_by, the first of nvtx, annotation and
--           pattern that finds any; see _engine_steps, _annotated_steps and
--           _pattern_steps for what each makes of a run.
CREATE VIEW steps AS
WITH found AS (
  SELECT
    run, engine, pid, tid, ts_ns, dur_ns, period_ns, phase, requests, tokens,
    depth, 'nvtx' AS found_by
  FROM _engine_steps
  UNION ALL
  SELECT
    run, engine, pid, tid, ts_ns, dur_ns, period_ns, phase, requests, tokens,
    0 AS depth, 'annotation' AS found_by
  FROM _annotated_steps
  UNION ALL
  SELECT
    run, engine, pid, tid, ts_ns, dur_ns, period_ns, phase,
    NULL AS requests, NULL AS tokens, 0 AS depth, 'pattern' AS found_by
  FROM _pattern_steps
  WHERE NOT is_worker
)

SELECT
  run,
  row_number() OVER (PARTITION BY run ORDER BY ts_ns, pid, tid, depth)
    AS step_id,
  engine, pid, tid, ts_ns, dur_ns, period_ns, phase, requests, tokens,
  found_by
FROM found;
