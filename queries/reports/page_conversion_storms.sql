-- page_conversion_storms: is memory converted between private and shared in
--           bursts while the engine serves?
-- requires: runs, steps, page_conversion
-- grain:    one row per run
-- columns:
--   run           VARCHAR  label of the run
--   answer        VARCHAR  yes, no or unknown
--   evidence      VARCHAR  what decided, in a sentence
--   serving_ns    BIGINT   from the start of the first step that is not of
--                          phase model_load to the end of the last, ns; NULL:
--                          there are none
--   conversions   BIGINT   conversions in that time, of either direction
--   to_shared     BIGINT   those that make memory shared
--   pages         BIGINT   pages of 4 KiB that they converted
--   total_ns      BIGINT   sum of their lengths, ns; NULL: none is known
--   total_ratio   DOUBLE   total_ns over serving_ns; NULL as either
--   storms        BIGINT   windows of window_ns with min_conversions or more
--   worst         BIGINT   most conversions in a window
--   worst_pages   BIGINT   pages converted in that window; NULL: there are none
--   worst_ns      BIGINT   sum of the lengths in it, ns; NULL: none is known
--   worst_at_ns   BIGINT   its start, ns of CLOCK_MONOTONIC; NULL: there are
--                          none
--   before        BIGINT   conversions before the first step, or all of them
--                          where there are no steps
--   before_pages  BIGINT   pages they converted
--   before_ns     BIGINT   sum of their lengths, ns; NULL: none is known
-- params:
--   window_ns        BIGINT = 1000000000  length of a window, ns; the first
--                                         begins with the first step
--   min_conversions  BIGINT = 10          yes where a window has that many
-- caveats:  of the whole machine, whichever process asks for the memory. In
--           steady state there should be none: each is a driver that allocates
--           memory to share with a device, or gives it back. Outside of a
--           confidential guest the calls return at once and convert nothing.
--           No cost has been published; the border of 10 a second is this
--           report's own.
WITH serving AS (
  SELECT
    run,
    min(ts_ns) AS ts_ns,
    max(ts_ns + coalesce(period_ns, dur_ns, 0)) AS end_ns
  FROM steps
  WHERE phase IS DISTINCT FROM 'model_load'
  GROUP BY run
),

placed AS (
  SELECT
    done.run, done.ts_ns, done.dur_ns, done."to", done.pages,
    serving.ts_ns AS serving_ns,
    serving.ts_ns IS NULL OR done.ts_ns < serving.ts_ns AS is_before,
    coalesce(done.ts_ns < serving.end_ns, FALSE) AS is_in_time
  FROM page_conversion AS done
  LEFT JOIN serving
    ON done.run = serving.run
),

windows AS (
  SELECT
    run,
    serving_ns + (ts_ns - serving_ns) // $window_ns * $window_ns AS ts_ns,
    count(*) AS conversions,
    count(*) FILTER ("to" = 'shared') AS to_shared,
    sum(pages) AS pages,
    sum(dur_ns) AS total_ns
  FROM placed
  WHERE NOT is_before
    AND is_in_time
  GROUP BY ALL
),

sums AS (
  SELECT
    run,
    sum(conversions) AS conversions,
    sum(to_shared) AS to_shared,
    sum(pages) AS pages,
    sum(total_ns) AS total_ns,
    count(*) FILTER (conversions >= $min_conversions) AS storms,
    max(conversions) AS worst,
    arg_max(pages, (conversions, -ts_ns)) AS worst_pages,
    arg_max(total_ns, (conversions, -ts_ns)) AS worst_ns,
    arg_max(ts_ns, (conversions, -ts_ns)) AS worst_at_ns
  FROM windows
  GROUP BY run
),

earlier AS (
  SELECT
    run,
    count(*) AS conversions,
    sum(pages) AS pages,
    sum(dur_ns) AS total_ns
  FROM placed
  WHERE is_before
  GROUP BY run
),

figures AS (
  SELECT
    runs.run,
    runs.tee,
    sums.run IS NOT NULL
    OR earlier.run IS NOT NULL
    OR contains(',' || runs.attached || ',', ',page_conversion,')
      AS is_recorded,
    serving.end_ns - serving.ts_ns AS serving_ns,
    coalesce(sums.conversions, 0) AS conversions,
    coalesce(sums.to_shared, 0) AS to_shared,
    coalesce(sums.pages, 0) AS pages,
    sums.total_ns,
    coalesce(sums.storms, 0) AS storms,
    coalesce(sums.worst, 0) AS worst,
    sums.worst_pages,
    sums.worst_ns,
    sums.worst_at_ns,
    coalesce(earlier.conversions, 0) AS before,
    coalesce(earlier.pages, 0) AS before_pages,
    earlier.total_ns AS before_ns
  FROM runs
  LEFT JOIN serving
    ON runs.run = serving.run
  LEFT JOIN sums
    ON runs.run = sums.run
  LEFT JOIN earlier
    ON runs.run = earlier.run
)

SELECT
  run,
  CASE
    WHEN NOT is_recorded THEN 'unknown'
    WHEN tee = 'none' THEN 'no'
    WHEN serving_ns IS NULL THEN 'unknown'
    WHEN storms > 0 THEN 'yes'
    ELSE 'no'
  END AS answer,
  CASE
    WHEN NOT is_recorded THEN 'page conversions were not recorded'
    WHEN tee = 'none'
      THEN 'the machine is no confidential guest: its memory is not converted'
    WHEN serving_ns IS NULL THEN format(
      'no steps were found, so that serving cannot be told from starting; '
      '{:,} conversion(s) in all', before
    )
    WHEN storms > 0 THEN format(
      '{:,} conversion(s) of {:.1f} MB while serving, in {:,} burst(s): up to '
      '{:,} in {:.1f} s; {}',
      CAST(conversions AS BIGINT), pages * 4096 / 1e6, storms, worst,
      $window_ns / 1e9,
      CASE
        WHEN total_ns IS NULL THEN 'how long they took is not known'
        ELSE format('they took {:.1f} ms', total_ns / 1e6)
      END
    )
    ELSE format(
      '{:,} conversion(s) in {:.1f} s of serving, never more than {:,} in '
      '{:.1f} s; {:,} came before',
      CAST(conversions AS BIGINT), serving_ns / 1e9, worst, $window_ns / 1e9,
      before
    )
  END AS evidence,
  serving_ns,
  CAST(conversions AS BIGINT) AS conversions,
  CAST(to_shared AS BIGINT) AS to_shared,
  CAST(pages AS BIGINT) AS pages,
  CAST(total_ns AS BIGINT) AS total_ns,
  CAST(total_ns / nullif(serving_ns, 0) AS DOUBLE) AS total_ratio,
  storms,
  worst,
  CAST(worst_pages AS BIGINT) AS worst_pages,
  CAST(worst_ns AS BIGINT) AS worst_ns,
  worst_at_ns,
  before,
  CAST(before_pages AS BIGINT) AS before_pages,
  CAST(before_ns AS BIGINT) AS before_ns
FROM figures
ORDER BY run;
