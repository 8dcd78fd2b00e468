-- launch_wait_toll: does it take longer than outside of confidential computing
--           until a launch that is waited for at once is done?
-- requires: runs, cuda_api, _probe_costs, gpu_activity, _published_costs
-- grain:    one row per run and pair of functions, launch and wait; one row for
--           a run without such pairs
-- columns:
--   run             VARCHAR  label of the run
--   answer          VARCHAR  yes, no or unknown
--   evidence        VARCHAR  what decided, in a sentence
--   launch_api      VARCHAR  function that launched; NULL: no pairs
--   wait_api        VARCHAR  function that waited; NULL as launch_api
--   pairs           BIGINT   launches that were followed at once by a wait for
--                            their stream, on a stream idle until then
--   pairs_queued    BIGINT   such pairs on streams with work left or not known
--                            to be idle; not in the times
--   timed_pairs     BIGINT   of pairs, those whose device time was observed
--   launch_p50_ns   BIGINT   median of the launch, ns, less what the probes add
--   wait_p50_ns     BIGINT   median of the wait, ns, likewise
--   elapsed_p10_ns  BIGINT   least tenth from the start of the launch to the
--                            end of the wait, ns, less what the probes add;
--                            NULL: no pairs
--   elapsed_p50_ns  BIGINT   median of it
--   net_p50_ns      BIGINT   median of it less the observed time of the device
--                            and with an empty kernel's 2 us instead; NULL: not
--                            observed
--   open_ns         BIGINT   published without CC, an empty kernel's 2 us in
--                            it, ns
--   cc_ns           BIGINT   published with CC, ns
--   ratio           DOUBLE   what decides (net_p50_ns, else elapsed_p10_ns)
--                            over open_ns; NULL: no pairs
--   family          VARCHAR  GPU of the published figures: b300 or h200
-- params:
--   min_pairs  BIGINT = 5  fewer pairs say nothing
-- caveats:  a pair is a launch and the wait for its stream or for the device as
--           the next call of the same thread, with nothing enqueued in between.
--           The stream was idle where the thread's call before the launch was
--           such a wait too; what other threads enqueue there is not looked at.
--           The border between yes and no is the geometric mean of the
--           published figures: 27.7 us on B300 (14 and 55 us; Tinfoil,
--           2026-06-23), 22.6 us on H200. With the device's own time observed,
--           the median without it decides. Else the least tenth does: if that
--           lies below the border the answer is no, since the device's work is
--           in it; if it lies above, the answer is yes only where the launches
--           themselves cost as with CC and the least tenth stays below twice
--           the figure with CC, and unknown where the device's work may be what
--           is long. Pairs whose launch was counted in the kernel are not seen.
WITH asked AS (
  SELECT
    run,
    probe_ns IS NULL AS is_gross,
    $min_pairs AS least_pairs
  FROM runs
),

published AS (
  SELECT
    launches.run, launches.family,
    launches.open_ns AS launch_open_ns,
    launches.cc_ns AS launch_cc_ns,
    -- An empty kernel takes 2 us (assumed: examples/simcuda/profiles).
    launches.open_ns + launches.open_latency_ns + waits.open_ns + 2000
      AS open_ns,
    launches.cc_ns + launches.cc_latency_ns + waits.cc_ns + 2000 AS cc_ns,
    asked.least_pairs, asked.is_gross
  FROM asked
  INNER JOIN _published_costs AS launches
    ON asked.run = launches.run
  INNER JOIN _published_costs AS waits
    ON launches.run = waits.run
    AND waits."class" = 'sync'
  WHERE launches."class" = 'launch'
),

calls AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", layer, api, stream,
    correlation_id,
    coalesce(result, 0) = 0 AS is_good,
    lag("class") OVER of_thread AS before_class,
    lag(api) OVER of_thread AS before_api,
    lag(stream) OVER of_thread AS before_stream,
    lag(dur_ns) OVER of_thread AS before_dur_ns,
    lead(ts_ns) OVER of_thread AS wait_ts_ns,
    lead(dur_ns) OVER of_thread AS wait_dur_ns,
    lead("class") OVER of_thread AS wait_class,
    lead(layer) OVER of_thread AS wait_layer,
    lead(api) OVER of_thread AS wait_api,
    lead(stream) OVER of_thread AS wait_stream,
    lead(coalesce(result, 0) = 0) OVER of_thread AS wait_is_good
  FROM cuda_api
  WHERE depth = 0
  WINDOW of_thread AS (
    PARTITION BY run, pid, tid
    ORDER BY ts_ns, dur_ns
  )
),

found AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns, calls.api,
    calls.correlation_id, calls.wait_api, calls.wait_dur_ns,
    coalesce(launching.probe_ns, 0) AS launch_probe_ns,
    coalesce(waiting.probe_ns, 0) AS wait_probe_ns,
    calls.wait_ts_ns + calls.wait_dur_ns - calls.ts_ns AS elapsed_ns,
    -- The wait before it has shown that.
    coalesce(
      calls.before_class = 'sync'
      AND calls.before_dur_ns IS NOT NULL
      AND contains(calls.before_api, 'Synchronize')
      AND (
        calls.stream = calls.before_stream
        OR contains(calls.before_api, 'DeviceSynchronize')
        OR contains(calls.before_api, 'CtxSynchronize')
      ),
      FALSE
    ) AS is_idle
  FROM calls
  LEFT JOIN _probe_costs AS launching
    ON calls.run = launching.run
    AND calls."class" = launching."class"
    AND calls.layer = launching.layer
  LEFT JOIN _probe_costs AS waiting
    ON calls.run = waiting.run
    AND waiting."class" = 'sync'
    AND calls.wait_layer = waiting.layer
  WHERE calls."class" IN ('launch', 'graph')
    AND calls.wait_class = 'sync'
    AND contains(calls.wait_api, 'Synchronize')
    AND calls.is_good
    AND calls.wait_is_good
    AND calls.dur_ns IS NOT NULL
    AND calls.wait_dur_ns IS NOT NULL
    AND NOT contains(calls.api, 'HostFunc')
    AND NOT contains(calls.api, 'Upload')
    AND (
      calls.stream = calls.wait_stream
      OR contains(calls.wait_api, 'DeviceSynchronize')
      OR contains(calls.wait_api, 'CtxSynchronize')
    )
),

device_work AS (
  SELECT run, pid, correlation_id, sum(dur_ns) AS dur_ns
  FROM gpu_activity
  WHERE correlation_id IS NOT NULL
  GROUP BY run, pid, correlation_id
),

pairs AS (
  SELECT
    found.run, found.api, found.wait_api,
    found.is_idle,
    greatest(found.dur_ns - found.launch_probe_ns, 0) AS launch_ns,
    greatest(found.wait_dur_ns - found.wait_probe_ns, 0) AS wait_ns,
    greatest(
      found.elapsed_ns - found.launch_probe_ns - found.wait_probe_ns, 0
    ) AS elapsed_ns,
    greatest(
      found.elapsed_ns - found.launch_probe_ns - found.wait_probe_ns
      - device_work.dur_ns + 2000,
      0
    ) AS net_ns,
    device_work.dur_ns IS NOT NULL AS is_timed
  FROM found
  LEFT JOIN device_work
    ON found.run = device_work.run
    AND found.pid = device_work.pid
    AND found.correlation_id = device_work.correlation_id
),

kinds AS (
  SELECT
    run, api, wait_api,
    count(*) FILTER (WHERE is_idle) AS pairs,
    count(*) FILTER (WHERE NOT is_idle) AS pairs_queued,
    count(*) FILTER (WHERE is_idle AND is_timed) AS timed_pairs,
    quantile_disc(launch_ns, 0.5) FILTER (WHERE is_idle) AS launch_p50_ns,
    quantile_disc(wait_ns, 0.5) FILTER (WHERE is_idle) AS wait_p50_ns,
    quantile_disc(elapsed_ns, 0.1) FILTER (WHERE is_idle) AS elapsed_p10_ns,
    quantile_disc(elapsed_ns, 0.5) FILTER (WHERE is_idle) AS elapsed_p50_ns,
    quantile_disc(net_ns, 0.5) FILTER (WHERE is_idle AND is_timed)
      AS net_p50_ns
  FROM pairs
  GROUP BY run, api, wait_api
),

weighed AS (
  SELECT
    published.run, published.family, published.open_ns, published.cc_ns,
    published.least_pairs, published.is_gross, kinds.api, kinds.wait_api,
    kinds.pairs,
    kinds.pairs_queued, kinds.timed_pairs, kinds.launch_p50_ns,
    kinds.wait_p50_ns, kinds.elapsed_p10_ns, kinds.elapsed_p50_ns,
    kinds.net_p50_ns,
    kinds.timed_pairs >= published.least_pairs AS is_observed,
    CASE
      WHEN kinds.timed_pairs >= published.least_pairs THEN kinds.net_p50_ns
      ELSE kinds.elapsed_p10_ns
    END AS decides_ns,
    sqrt(published.open_ns * published.cc_ns) AS border_ns,
    kinds.launch_p50_ns
    >= sqrt(published.launch_open_ns * published.launch_cc_ns)
      AS launches_are_dear
  FROM published
  LEFT JOIN kinds
    ON published.run = kinds.run
),

-- The kind of pair that says most: observed ones, then the most.
deciding AS (
  SELECT
    run, family, open_ns, cc_ns, least_pairs, is_gross, api, wait_api, pairs,
    pairs_queued, is_observed, decides_ns, border_ns, launches_are_dear
  FROM weighed
  QUALIFY row_number() OVER (
    PARTITION BY run
    ORDER BY is_observed DESC, pairs DESC, api, wait_api
  ) = 1
),

judged AS (
  SELECT
    run, family, open_ns, cc_ns, least_pairs, is_gross, api, wait_api, pairs,
    pairs_queued, is_observed, decides_ns, border_ns,
    CASE
      WHEN coalesce(pairs, 0) < least_pairs THEN 'unknown'
      WHEN decides_ns < border_ns THEN 'no'
      WHEN is_observed THEN 'yes'
      WHEN launches_are_dear AND decides_ns <= 2 * cc_ns THEN 'yes'
      ELSE 'unknown'
    END AS answer
  FROM deciding
),

verdicts AS (
  SELECT
    run, answer,
    CASE
      WHEN api IS NULL
        THEN 'no launch was followed at once by a wait for its stream'
      WHEN coalesce(pairs, 0) < least_pairs
        THEN format(
          '{:,} launches on an idle stream were followed at once by a wait, '
          'and {:,} are needed ({:,} more were queued behind other work)',
          pairs, least_pairs, pairs_queued
        )
      WHEN answer = 'unknown'
        THEN format(
          'the least tenth of {:,} pairs of {} and {} takes {:.1f} us, and '
          'how much of it is the device''s work was not observed ({:.1f} us '
          'are published without CC, {:.1f} with)',
          pairs, api, wait_api, decides_ns / 1e3, open_ns / 1e3, cc_ns / 1e3
        )
      ELSE format(
        'the {} of {:,} pairs of {} and {} takes {:.1f} us{}, {:.1f} times '
        'the {:.1f} us published without CC; with CC {:.1f} us are published '
        '({}){}',
        if(is_observed, 'median', 'least tenth'), pairs, api, wait_api,
        decides_ns / 1e3,
        if(is_observed, ' less the device''s work', ''),
        decides_ns / open_ns, open_ns / 1e3, cc_ns / 1e3, family,
        if(is_gross, '; what the tracer adds is not known', '')
      )
    END AS evidence
  FROM judged
)

SELECT
  weighed.run,
  verdicts.answer,
  verdicts.evidence,
  weighed.api AS launch_api,
  weighed.wait_api,
  coalesce(weighed.pairs, 0) AS pairs,
  coalesce(weighed.pairs_queued, 0) AS pairs_queued,
  coalesce(weighed.timed_pairs, 0) AS timed_pairs,
  CAST(round(weighed.launch_p50_ns) AS BIGINT) AS launch_p50_ns,
  CAST(round(weighed.wait_p50_ns) AS BIGINT) AS wait_p50_ns,
  CAST(round(weighed.elapsed_p10_ns) AS BIGINT) AS elapsed_p10_ns,
  CAST(round(weighed.elapsed_p50_ns) AS BIGINT) AS elapsed_p50_ns,
  CAST(round(weighed.net_p50_ns) AS BIGINT) AS net_p50_ns,
  CAST(weighed.open_ns AS BIGINT) AS open_ns,
  CAST(weighed.cc_ns AS BIGINT) AS cc_ns,
  CAST(weighed.decides_ns / weighed.open_ns AS DOUBLE) AS ratio,
  weighed.family
FROM weighed
INNER JOIN verdicts
  ON weighed.run = verdicts.run
ORDER BY weighed.run, weighed.pairs DESC, weighed.api, weighed.wait_api;
