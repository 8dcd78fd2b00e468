-- _driver_stretches: the time of threads that drive steps, cut wherever what
--           they do changes.
-- requires: steps, _step_tracks, _nvtx_paths, _program_calls, sched
-- grain:    one row per step that has a period and stretch of its time in which
--           its thread stays in one NVTX path and one call, or off the CPU, or
--           on it
-- columns:
--   run          VARCHAR  label of the run
--   track        BIGINT   as in _step_tracks
--   pid          INTEGER  process
--   tid          INTEGER  thread that drives the loop
--   step_id      BIGINT   as in steps
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns       BIGINT   length, ns, > 0; they sum to the step's period_ns
--   path         VARCHAR  as in _nvtx_paths; NULL: not known
--   state        VARCHAR  call: in a CUDA call; off_cpu: outside of calls, not
--                         ready to run; runnable: outside of calls, ready and
--                         without a CPU; on_cpu: outside of calls, neither
--   call_ns      BIGINT   call: its start, ns; it may be in an earlier stretch;
--                         NULL: no call
--   is_open      BOOLEAN  call: it never returned
--   class        VARCHAR  call: as in cuda_api; NULL: no call
--   api          VARCHAR  call: function name; NULL: no call
--   copy_kind    VARCHAR  call: as in cuda_api
--   host_memory  VARCHAR  call: as in cuda_api
--   size_class   VARCHAR  call: as in _program_calls
--   stack_id     BIGINT   call or wait: joins stacks.stack_id; NULL: none taken
-- caveats:  a call that never returned lasts to the end of its step, or to the
--           thread's next call. Calls of one thread do not overlap; should
--           they, the later one counts from where it starts. Steps of several
--           engines on one thread have stretches each, for the same time. Sorts
--           the starts of all ranges, calls and waits of these threads.
CREATE VIEW _driver_stretches AS
WITH points AS (
  SELECT
    tracks.track, steps.ts_ns,
    1 AS kind,
    CAST(NULL AS BIGINT) AS end_ns,
    -- Between steps, and in one of unknown length, nothing counts.
    {
      'step_id': steps.step_id,
      'ts_ns': steps.ts_ns,
      'end_ns': steps.ts_ns + coalesce(steps.period_ns, 0)
    } AS step,
    CAST(NULL AS STRUCT(path VARCHAR)) AS place,
    CAST(
      NULL AS STRUCT(
        ts_ns BIGINT, end_ns BIGINT, is_open BOOLEAN, "class" VARCHAR,
        api VARCHAR, copy_kind VARCHAR, host_memory VARCHAR,
        size_class VARCHAR, stack_id BIGINT
      )
    ) AS call,
    CAST(
      NULL AS STRUCT(end_ns BIGINT, is_runnable BOOLEAN, stack_id BIGINT)
    ) AS wait
  FROM steps
  INNER JOIN _step_tracks AS tracks
    ON steps.run = tracks.run
    AND steps.engine = tracks.engine
    AND steps.pid = tracks.pid
    AND steps.tid = tracks.tid
  UNION ALL
  SELECT
    tracks.track, paths.ts_ns,
    2 AS kind,
    NULL AS end_ns,
    NULL AS step,
    {'path': paths.path} AS place,
    NULL AS call,
    NULL AS wait
  FROM _nvtx_paths AS paths
  INNER JOIN _step_tracks AS tracks
    ON paths.run = tracks.run
    AND paths.pid = tracks.pid
    AND paths.tid = tracks.tid
  WHERE paths.ts_ns < tracks.last_ns
  UNION ALL
  SELECT
    tracks.track, calls.ts_ns,
    3 AS kind,
    calls.ts_ns + calls.dur_ns AS end_ns,
    NULL AS step,
    NULL AS place,
    {
      'ts_ns': calls.ts_ns,
      'end_ns': coalesce(calls.ts_ns + calls.dur_ns, tracks.last_ns),
      'is_open': calls.dur_ns IS NULL,
      'class': calls."class",
      'api': calls.api,
      'copy_kind': calls.copy_kind,
      'host_memory': calls.host_memory,
      'size_class': calls.size_class,
      'stack_id': calls.stack_id
    } AS call,
    NULL AS wait
  FROM _program_calls AS calls
  INNER JOIN _step_tracks AS tracks
    ON calls.run = tracks.run
    AND calls.pid = tracks.pid
    AND calls.tid = tracks.tid
  WHERE calls.ts_ns < tracks.last_ns
  UNION ALL
  SELECT
    tracks.track, sched.ts_ns,
    4 AS kind,
    sched.ts_ns + sched.dur_ns AS end_ns,
    NULL AS step,
    NULL AS place,
    NULL AS call,
    {
      'end_ns': sched.ts_ns + sched.dur_ns,
      'is_runnable': sched.state = 'runnable',
      'stack_id': sched.stack_id
    } AS wait
  FROM sched
  INNER JOIN _step_tracks AS tracks
    ON sched.run = tracks.run
    AND sched.pid = tracks.pid
    AND sched.tid = tracks.tid
  WHERE sched.dur_ns > 0
    AND sched.ts_ns < tracks.last_ns
),

-- What holds from each point to the next one: the last of each kind.
held AS (
  SELECT
    track, ts_ns,
    lead(ts_ns, 1, 9223372036854775807) OVER upto AS next_ns,
    last_value(step IGNORE NULLS) OVER upto AS step,
    last_value(place IGNORE NULLS) OVER upto AS place,
    last_value(call IGNORE NULLS) OVER upto AS call,
    last_value(wait IGNORE NULLS) OVER upto AS wait
  FROM points
  WINDOW
    upto AS (
      PARTITION BY track
      ORDER BY ts_ns, kind, end_ns NULLS LAST
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

-- First it is in the call, if that lasts so long, then off the CPU, then on it.
called AS (
  SELECT
    track, step, place, call, wait, ts_ns,
    least(next_ns, step['end_ns']) AS end_ns,
    CASE
      WHEN call['end_ns'] > ts_ns
        AND (NOT call['is_open'] OR call['ts_ns'] >= step['ts_ns'])
        THEN least(call['end_ns'], next_ns, step['end_ns'])
      ELSE ts_ns
    END AS called_ns
  FROM held
  WHERE step IS NOT NULL
    AND ts_ns < least(next_ns, step['end_ns'])
),

cut AS MATERIALIZED (
  SELECT
    track, step, place, call, wait, ts_ns, end_ns, called_ns,
    CASE
      WHEN wait['end_ns'] > called_ns THEN least(wait['end_ns'], end_ns)
      ELSE called_ns
    END AS waited_ns
  FROM called
),

stretches AS (
  SELECT
    track, step, place,
    'call' AS state,
    call,
    call['stack_id'] AS stack_id,
    ts_ns,
    called_ns AS end_ns
  FROM cut
  WHERE called_ns > ts_ns
  UNION ALL
  SELECT
    track, step, place,
    CASE WHEN wait['is_runnable'] THEN 'runnable' ELSE 'off_cpu' END AS state,
    NULL AS call,
    wait['stack_id'] AS stack_id,
    called_ns AS ts_ns,
    waited_ns AS end_ns
  FROM cut
  WHERE waited_ns > called_ns
  UNION ALL
  SELECT
    track, step, place,
    'on_cpu' AS state,
    NULL AS call,
    NULL AS stack_id,
    waited_ns AS ts_ns,
    end_ns
  FROM cut
  WHERE end_ns > waited_ns
)

SELECT
  tracks.run, tracks.track, tracks.pid, tracks.tid,
  stretches.step['step_id'] AS step_id,
  stretches.ts_ns,
  stretches.end_ns - stretches.ts_ns AS dur_ns,
  CASE
    WHEN stretches.place IS NULL THEN '' ELSE stretches.place['path']
  END AS path,
  stretches.state,
  stretches.call['ts_ns'] AS call_ns,
  stretches.call['is_open'] AS is_open,
  stretches.call['class'] AS "class",
  stretches.call['api'] AS api,
  stretches.call['copy_kind'] AS copy_kind,
  stretches.call['host_memory'] AS host_memory,
  stretches.call['size_class'] AS size_class,
  stretches.stack_id
FROM stretches
INNER JOIN _step_tracks AS tracks
  ON stretches.track = tracks.track;
