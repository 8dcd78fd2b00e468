-- collective_toll: do collectives cost more than outside of confidential
--           computing?
-- requires: runs, steps, crossings, gpu_activity, _probe_costs,
--           _published_costs
-- grain:    one row per run, side and function or kernel; one row for a run
--           without collectives
-- columns:
--   run                    VARCHAR  label of the run
--   answer                 VARCHAR  yes, no or unknown
--   evidence               VARCHAR  what decided, in a sentence
--   side                   VARCHAR  host: calls of NCCL; device: its kernels,
--                                   where the run has gpu_activity; NULL: no
--                                   collectives
--   name                   VARCHAR  function name, or the kernel's; NULL as
--                                   side
--   ranks                  BIGINT   host: threads that call it; device: devices
--                                   it runs on, or processes where devices are
--                                   not told
--   calls                  BIGINT   calls that returned without an error, or
--                                   kernels that ended
--   open_calls             BIGINT   calls or kernels that never did
--   errors                 BIGINT   calls that failed
--   grouped                BIGINT   of calls, those within a group of NCCL,
--                                   which only note what the group's end
--                                   submits; not in the times
--   calls_per_step         DOUBLE   mean for a rank, those of other than steps
--                                   left out; NULL: no steps
--   size_p50_bytes         BIGINT   median of the bytes a rank gives; NULL: not
--                                   told
--   p10_ns                 BIGINT   least tenth of a call on the host, or of a
--                                   kernel on the device, ns, less what the
--                                   probes add; NULL: none
--   p50_ns                 BIGINT   median of it; NULL as p10_ns
--   p90_ns                 BIGINT   90th percentile of it; NULL as p10_ns
--   ns_per_step            BIGINT   mean for a rank, ns; NULL as calls_per_step
--   open_ns                BIGINT   published without CC, ns: the host's
--                                   submission, or a small exchange on the
--                                   device
--   cc_ns                  BIGINT   published with CC, ns, likewise
--   ratio                  DOUBLE   p50_ns over open_ns; of the device p10_ns
--                                   over open_ns; NULL as p10_ns
--   published_ns_per_step  BIGINT   estimate: calls_per_step times what is
--                                   published as the device's additional time
--                                   with CC for each exchange, ns; NULL as
--                                   calls_per_step
-- params:
--   min_calls  BIGINT = 20  fewer calls say nothing
-- caveats:  the host sees a collective submitted, not exchanged: what is
--           published for the exchange, 10 to 15 us more each on B300 and 9 to
--           13 on Hopper (Tinfoil, 2026-06-23), shows on the device alone. The
--           answer is that of the function with most time on the host: its
--           border is the geometric mean of a launch's published figures, 13.9
--           us on B300. Without such calls, kernels of NCCL on the device can
--           give a no, where their least tenth is shorter than the geometric
--           mean of 15 us (assumed, for a small exchange) and 27.5 us; a longer
--           one may be due to size or to waiting for other ranks, and is
--           unknown. Calls that set up or end communicators are not here. A
--           process without steps of its own is taken to belong to the loop
--           with most steps.
WITH asked AS (
  SELECT
    run,
    probe_ns IS NULL AS is_gross,
    $min_calls AS least_calls
  FROM runs
),

published AS (
  SELECT
    run, family, open_ns, cc_ns, open_latency_ns, cc_latency_ns
  FROM _published_costs
  WHERE "class" = 'collective'
),

loops AS (
  SELECT
    run, pid, tid,
    count(*) AS steps,
    min(ts_ns) AS first_ns,
    max(ts_ns + coalesce(period_ns, dur_ns)) AS last_ns,
    row_number() OVER (
      PARTITION BY run
      ORDER BY count(*) DESC, pid, tid
    ) AS in_run,
    row_number() OVER (
      PARTITION BY run, pid
      ORDER BY count(*) DESC, tid
    ) AS in_process
  FROM steps
  WHERE coalesce(period_ns, dur_ns) > 0
  GROUP BY run, pid, tid
),

-- A group's start and end enclose what is submitted at its end.
calls AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, api, layer, size_bytes, result,
    last_value(
      CASE WHEN api IN ('ncclGroupStart', 'ncclGroupEnd') THEN api END
      IGNORE NULLS
    ) OVER (
      PARTITION BY run, pid, tid
      ORDER BY ts_ns, dur_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS group_api
  FROM crossings
  WHERE "class" = 'collective'
    AND NOT starts_with(api, 'ncclComm')
),

on_host AS (
  SELECT
    calls.run, 'host' AS side, calls.api AS "name", calls.pid, calls.tid,
    calls.pid || '/' || calls.tid AS rank,
    calls.ts_ns, calls.size_bytes,
    calls.dur_ns IS NULL AS is_open,
    coalesce(calls.result, 0) <> 0 AS is_error,
    coalesce(calls.group_api = 'ncclGroupStart', FALSE)
    AND calls.api <> 'ncclGroupEnd' AS is_grouped,
    greatest(calls.dur_ns - coalesce(probes.probe_ns, 0), 0) AS net_ns
  FROM calls
  LEFT JOIN _probe_costs AS probes
    ON calls.run = probes.run
    AND probes."class" = 'collective'
    AND calls.layer = probes.layer
  WHERE calls.api <> 'ncclGroupStart'
),

on_device AS (
  SELECT
    run, 'device' AS side,
    coalesce(
      nullif(regexp_extract("name", 'nccl\w*', 0, 'i'), ''), "name"
    ) AS "name",
    pid, tid,
    coalesce(CAST(device AS VARCHAR), 'process ' || pid, '') AS rank,
    ts_ns, size_bytes,
    dur_ns IS NULL AS is_open,
    FALSE AS is_error,
    FALSE AS is_grouped,
    dur_ns AS net_ns
  FROM gpu_activity
  WHERE "class" = 'kernel'
    AND contains(lower("name"), 'nccl')
),

exchanges AS (
  SELECT
    run, side, "name", pid, tid, rank, ts_ns, size_bytes, is_open, is_error,
    is_grouped, net_ns
  FROM on_host
  UNION ALL
  SELECT
    run, side, "name", pid, tid, rank, ts_ns, size_bytes, is_open, is_error,
    is_grouped, net_ns
  FROM on_device
),

-- A thread's loop: its own, its process's, or the run's with most steps.
looped AS (
  SELECT
    made.run, made.side, made."name", made.rank, made.size_bytes,
    made.is_open, made.is_error, made.is_grouped, made.net_ns,
    coalesce(own.steps, inside.steps, main.steps) AS steps,
    NOT made.is_open
    AND NOT made.is_error
    AND coalesce(
      made.ts_ns
      BETWEEN coalesce(own.first_ns, inside.first_ns, main.first_ns)
      AND coalesce(own.last_ns, inside.last_ns, main.last_ns) - 1,
      FALSE
    ) AS is_in_steps
  FROM exchanges AS made
  LEFT JOIN loops AS own
    ON made.run = own.run
    AND made.pid = own.pid
    AND made.tid = own.tid
    AND made.side = 'host'
  LEFT JOIN loops AS inside
    ON made.run = inside.run
    AND made.pid = inside.pid
    AND inside.in_process = 1
  LEFT JOIN loops AS main
    ON made.run = main.run
    AND main.in_run = 1
),

by_rank AS (
  SELECT
    run, side, "name", rank,
    count(*) FILTER (WHERE is_in_steps) / any_value(steps) AS calls_per_step,
    coalesce(
      sum(net_ns) FILTER (WHERE is_in_steps AND NOT is_grouped), 0
    ) / any_value(steps) AS ns_per_step
  FROM looped
  GROUP BY run, side, "name", rank
),

ranks AS (
  SELECT
    run, side, "name",
    count(*) AS ranks,
    avg(calls_per_step) AS calls_per_step,
    avg(ns_per_step) AS ns_per_step
  FROM by_rank
  GROUP BY run, side, "name"
),

summed AS (
  SELECT
    run, side, "name",
    count(*) FILTER (WHERE NOT is_open AND NOT is_error) AS calls,
    count(*) FILTER (WHERE is_open) AS open_calls,
    count(*) FILTER (WHERE is_error) AS errors,
    count(*) FILTER (WHERE is_grouped AND NOT is_open AND NOT is_error)
      AS grouped,
    quantile_disc(size_bytes, 0.5)
      FILTER (WHERE NOT is_open AND NOT is_error) AS size_p50_bytes,
    quantile_disc(net_ns, [0.1, 0.5, 0.9])
      FILTER (WHERE NOT is_error AND NOT is_grouped) AS quantiles,
    sum(net_ns) FILTER (WHERE NOT is_error AND NOT is_grouped) AS total_ns
  FROM looped
  GROUP BY run, side, "name"
),

kinds AS (
  SELECT
    summed.run, summed.side, summed."name", ranks.ranks, summed.calls,
    summed.open_calls, summed.errors, summed.grouped, summed.size_p50_bytes,
    ranks.calls_per_step, ranks.ns_per_step, summed.total_ns,
    summed.quantiles[1] AS p10_ns,
    summed.quantiles[2] AS p50_ns,
    summed.quantiles[3] AS p90_ns,
    CASE summed.side
      WHEN 'host' THEN published.open_ns
      ELSE published.open_latency_ns
    END AS open_ns,
    CASE summed.side
      WHEN 'host' THEN published.cc_ns
      ELSE published.cc_latency_ns
    END AS cc_ns,
    CASE summed.side
      WHEN 'host' THEN summed.quantiles[2] / published.open_ns
      ELSE summed.quantiles[1] / published.open_latency_ns
    END AS ratio,
    CASE
      WHEN summed."name" <> 'ncclGroupEnd'
        THEN ranks.calls_per_step
          * (published.cc_latency_ns - published.open_latency_ns)
    END AS published_ns_per_step,
    published.family
  FROM summed
  INNER JOIN ranks
    ON summed.run = ranks.run
    AND summed.side = ranks.side
    AND summed."name" = ranks."name"
  INNER JOIN published
    ON summed.run = published.run
),

-- The host's calls first: a kernel's length alone says little.
deciding AS (
  SELECT
    kinds.run, kinds.side, kinds."name", kinds.calls, kinds.grouped,
    kinds.p10_ns, kinds.p50_ns, kinds.open_ns, kinds.cc_ns, kinds.ratio,
    kinds.calls_per_step, kinds.published_ns_per_step, kinds.family,
    CASE
      WHEN kinds.side = 'host'
        THEN if(kinds.p50_ns >= sqrt(kinds.open_ns * kinds.cc_ns), 'yes', 'no')
      WHEN kinds.p10_ns < sqrt(kinds.open_ns * kinds.cc_ns) THEN 'no'
      ELSE 'unknown'
    END AS answer
  FROM kinds
  INNER JOIN asked
    ON kinds.run = asked.run
  WHERE kinds.calls - kinds.grouped >= asked.least_calls
  QUALIFY row_number() OVER (
    PARTITION BY kinds.run
    ORDER BY kinds.side DESC, kinds.total_ns DESC, kinds."name"
  ) = 1
),

totals AS (
  SELECT
    run,
    sum(calls) AS calls,
    sum(published_ns_per_step) FILTER (WHERE side = 'host')
      AS published_ns_per_step
  FROM kinds
  GROUP BY run
),

verdicts AS (
  SELECT
    asked.run,
    coalesce(deciding.answer, 'unknown') AS answer,
    CASE
      WHEN totals.run IS NULL THEN 'no collectives were recorded'
      WHEN deciding.run IS NULL
        THEN format(
          '{:,} collectives were recorded, and {:,} of one kind are needed',
          CAST(totals.calls AS BIGINT), asked.least_calls
        )
      WHEN deciding.side = 'host'
        THEN format(
          'the median of {:,} {} takes the host {:,.1f} us to submit, {:.1f} '
          'times the {:.1f} us published without CC; with CC {:.1f} us are '
          'published ({}){}{}',
          deciding.calls - deciding.grouped, deciding."name",
          deciding.p50_ns / 1e3, deciding.ratio, deciding.open_ns / 1e3,
          deciding.cc_ns / 1e3, deciding.family,
          if(
            coalesce(totals.published_ns_per_step, 0) = 0, '',
            format(
              '; the exchanges themselves would take {:,.1f} us of each step '
              'more with CC, as published',
              totals.published_ns_per_step / 1e3
            )
          ),
          if(asked.is_gross, '; what the tracer adds is not known', '')
        )
      ELSE format(
        'the least tenth of {:,} {} takes the device {:,.1f} us, {}',
        deciding.calls, deciding."name", deciding.p10_ns / 1e3,
        if(
          deciding.answer = 'no',
          format(
            'less than a small exchange with CC ({:.1f} us, published)',
            deciding.cc_ns / 1e3
          ),
          'which may be due to size or to waiting for other ranks'
        )
      )
    END AS evidence
  FROM asked
  LEFT JOIN totals
    ON asked.run = totals.run
  LEFT JOIN deciding
    ON asked.run = deciding.run
)

SELECT
  v.run,
  v.answer,
  v.evidence,
  k.side,
  k."name",
  coalesce(k.ranks, 0) AS ranks,
  coalesce(k.calls, 0) AS calls,
  coalesce(k.open_calls, 0) AS open_calls,
  coalesce(k.errors, 0) AS errors,
  coalesce(k.grouped, 0) AS grouped,
  k.calls_per_step,
  k.size_p50_bytes,
  CAST(k.p10_ns AS BIGINT) AS p10_ns,
  CAST(k.p50_ns AS BIGINT) AS p50_ns,
  CAST(k.p90_ns AS BIGINT) AS p90_ns,
  CAST(round(k.ns_per_step) AS BIGINT) AS ns_per_step,
  CAST(k.open_ns AS BIGINT) AS open_ns,
  CAST(k.cc_ns AS BIGINT) AS cc_ns,
  k.ratio,
  CAST(round(k.published_ns_per_step) AS BIGINT) AS published_ns_per_step
FROM verdicts AS v
LEFT JOIN kinds AS k
  ON v.run = k.run
ORDER BY v.run, k.side DESC, k.calls DESC, k."name";
