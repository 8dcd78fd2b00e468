-- page_conversions: memory handed from private to shared and back.
-- requires: page_conversion
-- grain:    one row per run and direction
-- columns:
--   run          VARCHAR  label of the run
--   to           VARCHAR  shared or private
--   conversions  BIGINT   calls that succeeded
--   bytes        BIGINT   memory they converted, in pages of 4 KiB
--   total_ns     BIGINT   sum of their lengths, ns; NULL: not known of any
--   p50_ns       BIGINT   median length, ns; NULL as total_ns
--   max_ns       BIGINT   longest, ns; NULL as total_ns
--   first_ns     BIGINT   start of the first, ns of CLOCK_MONOTONIC
--   last_ns      BIGINT   start of the last, ns of CLOCK_MONOTONIC
-- caveats:  of the whole machine. Outside a confidential guest the same calls
--           return at once and convert nothing. In steady state there should be
--           none: bursts are drivers that allocate.
SELECT
  run,
  "to",
  count(*) AS conversions,
  CAST(sum(pages) * 4096 AS BIGINT) AS bytes,
  CAST(sum(dur_ns) AS BIGINT) AS total_ns,
  quantile_disc(dur_ns, 0.5) AS p50_ns,
  max(dur_ns) AS max_ns,
  min(ts_ns) AS first_ns,
  max(ts_ns) AS last_ns
FROM page_conversion
GROUP BY run, "to"
ORDER BY run, "to";
