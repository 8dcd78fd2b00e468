-- nvtx_summary: where NVTX ranges spend their time, by name.
-- requires: nvtx, nvtx_self
-- grain:    one row per run, domain, name and kind, most self time first
-- columns:
--   run       VARCHAR  label of the run
--   domain    VARCHAR  NVTX domain; NULL: the default domain
--   name      VARCHAR  message; NULL: it had none, or it was lost
--   kind      VARCHAR  push_pop, start_end or mark
--   calls     BIGINT   ranges or marks, open ones included
--   total_ns  BIGINT   sum of their lengths, ns; NULL: marks, or all are open
--   self_ns   BIGINT   sum of what no range inside them covers, ns; NULL: not
--                      push_pop, or not known of any; see the view nvtx_self
--   p50_ns    BIGINT   median length, ns; NULL as total_ns
--   p99_ns    BIGINT   99th percentile of the length, ns; NULL as total_ns
--   max_ns    BIGINT   longest, ns; NULL as total_ns
-- params:
--   domain     VARCHAR = NULL  only this domain
--   min_calls  BIGINT = 1      only names with as many calls
--   top        BIGINT = NULL   only as many rows of each run
-- caveats:  open ranges count as calls and have no length. Percentiles are
--           lengths that occurred, not interpolated.
WITH ranges AS (
  SELECT run, domain, name, 'push_pop' AS kind, dur_ns, self_ns
  FROM nvtx_self
  UNION ALL
  SELECT
    run, domain, name, kind,
    CASE WHEN kind <> 'mark' THEN dur_ns END AS dur_ns,
    NULL AS self_ns
  FROM nvtx
  WHERE kind <> 'push_pop'
),

summed AS (
  SELECT
    run, domain, name, kind,
    count(*) AS calls,
    CAST(sum(dur_ns) AS BIGINT) AS total_ns,
    CAST(sum(self_ns) AS BIGINT) AS self_ns,
    quantile_disc(dur_ns, [0.5, 0.99]) AS quantiles,
    max(dur_ns) AS max_ns
  FROM ranges
  -- Not sooner: ranges of other domains lie inside those of this one.
  WHERE $domain IS NULL
    OR domain = $domain
  GROUP BY run, domain, name, kind
  HAVING count(*) >= $min_calls
),

ranked AS (
  SELECT
    run, domain, name, kind, calls, total_ns, self_ns, quantiles, max_ns,
    row_number() OVER (
      PARTITION BY run
      ORDER BY
        self_ns DESC NULLS LAST, total_ns DESC NULLS LAST, calls DESC,
        domain NULLS FIRST, name NULLS FIRST, kind
    ) AS place
  FROM summed
)

SELECT
  run,
  domain,
  name,
  kind,
  calls,
  total_ns,
  self_ns,
  quantiles[1] AS p50_ns,
  quantiles[2] AS p99_ns,
  max_ns
FROM ranked
WHERE $top IS NULL
  OR place <= $top
ORDER BY run, place;
