-- steps: every step of the engine's loop.
-- requires: steps
-- grain:    one row per step, by run and start
-- columns:
--   run        VARCHAR  label of the run
--   step_id    BIGINT   number of the step within its run, from 1, by start
--   engine     VARCHAR  vllm, transformers, or the domain of ranges named step
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   length of the step's own range, ns; NULL while open
--   period_ns  BIGINT   time to the start of the next step, ns; NULL: the last
--                       one, or the loop paused in between
--   phase      VARCHAR  prefill, decode, mixed, or what the program says; NULL:
--                       it does not say
--   requests   BIGINT   requests in the batch; NULL: not told
--   tokens     BIGINT   tokens scheduled; NULL: not told
-- params:
--   engine  VARCHAR = NULL  only this engine
--   phase   VARCHAR = NULL  only this phase
-- caveats:  no rows where the run has no step ranges; see the view steps
SELECT
  run,
  step_id,
  engine,
  pid,
  tid,
  ts_ns,
  dur_ns,
  period_ns,
  phase,
  requests,
  tokens
FROM steps
WHERE ($engine IS NULL OR engine = $engine)
  AND ($phase IS NULL OR phase = $phase)
ORDER BY run, step_id;
