-- counter_summary: every counter's range and last value.
-- requires: counters
-- grain:    one row per run, counter and process
-- columns:
--   run      VARCHAR  label of the run
--   name     VARCHAR  counter
--   pid      INTEGER  process; NULL: the whole machine
--   unit     VARCHAR  unit of the values
--   samples  BIGINT   samples taken
--   min      DOUBLE   lowest
--   max      DOUBLE   highest
--   last     DOUBLE   last: the total, of counters that only grow
--   last_ns  BIGINT   when that was, ns of CLOCK_MONOTONIC
-- params:
--   prefix  VARCHAR = NULL  only counters whose name begins so: swiotlb., dma.
-- caveats:  counters that only grow are sampled when they have; between samples
--           a gauge (swiotlb.used) may have been higher: swiotlb.used_hiwater,
--           where the kernel has it, has not missed that.
SELECT
  run,
  name,
  pid,
  unit,
  count(*) AS samples,
  min("value") AS "min",
  max("value") AS "max",
  arg_max("value", ts_ns) AS "last",
  max(ts_ns) AS last_ns
FROM counters
WHERE $prefix IS NULL
  OR starts_with(name, $prefix)
GROUP BY run, name, pid, unit
ORDER BY run, name, pid NULLS FIRST;
