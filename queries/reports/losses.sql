-- losses: what is missing from the run, and why.
-- requires: losses
-- grain:    one row per run, source and reason, most first
-- columns:
--   run       VARCHAR  label of the run
--   source    VARCHAR  source that lost it
--   reason    VARCHAR  why; docs/run-format.md lists the reasons
--   count     BIGINT   how much, > 0
--   threads   BIGINT   threads it was lost in; 0: none in particular
--   first_ns  BIGINT   first loss, ns of CLOCK_MONOTONIC; NULL: unknown
--   last_ns   BIGINT   last loss, ns of CLOCK_MONOTONIC; NULL: unknown
-- caveats:  some reasons leave the event in the run, only poorer: see
--           docs/run-format.md
SELECT
  run,
  source,
  reason,
  CAST(sum("count") AS BIGINT) AS "count",
  count(DISTINCT (pid, tid)) FILTER (tid IS NOT NULL) AS threads,
  min(first_ns) AS first_ns,
  max(last_ns) AS last_ns
FROM losses
GROUP BY run, source, reason
ORDER BY run, "count" DESC, source, reason;
