-- steps: every step of the engine's loop.
-- requires: steps
-- grain:    one row per step, by run and start
-- columns:
--   run        VARCHAR  label of the run
--   step_id    BIGINT   number of the step within its run, from 1, by start
--   engine     VARCHAR  vllm, transformers, or the domain of ranges named step;
--                       what made the annotations; pattern
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   length of the step's own range, ns; of a pattern the
--                       time to the return of its last call; NULL: not known
--   period_ns  BIGINT   time to the start of the next step, ns; NULL: the last
--                       one, or the loop paused in between
--   phase      VARCHAR  prefill, decode, mixed, train, or what the program
--                       says; NULL: it does not say
--   requests   BIGINT   requests in the batch; NULL: not told
--   tokens     BIGINT   tokens scheduled; NULL: not told
--   found_by   VARCHAR  nvtx, annotation or pattern, as in the view
-- params:
--   engine  VARCHAR = NULL  only this engine
--   phase   VARCHAR = NULL  only this phase
-- caveats:  no rows where a run has neither ranges that tell steps nor CUDA
--           calls that repeat; see the view steps
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
  tokens,
  found_by
FROM steps
WHERE ($engine IS NULL OR engine = $engine)
  AND ($phase IS NULL OR phase = $phase)
ORDER BY run, step_id;
