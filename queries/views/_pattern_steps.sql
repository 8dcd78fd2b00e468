-- _pattern_steps: steps told from what repeats in a process's CUDA calls.
-- requires: runs, cuda_api, _engine_steps, _annotated_steps
-- grain:    one row per step and process of a run whose ranges mark none, or
--           mark those of a process that submits no work
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   engine     VARCHAR  pattern
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start of the step's first submission, ns of
--                       CLOCK_MONOTONIC
--   dur_ns     BIGINT   time to the return of its last copy, submission or
--                       wait, ns; NULL: it never returned
--   period_ns  BIGINT   start of the next step less this one's, ns; NULL: the
--                       last one, or the loop paused in between
--   phase      VARCHAR  prefill or decode; NULL: the copies do not tell
--   is_worker  BOOLEAN  the run's steps are marked, in a process that leaves
--                       the device to this one: see worker_steps
-- caveats:  A step starts with the first submission (a copy to the device, a
--           launch, a memset, a collective) after a readback of the same
--           thread: a copy to the host, with the waits that follow it. A thread
--           that copies nothing back, because another one does, is cut after
--           its waits (but not those for its own uploads), and one that does
--           not wait either where it records an event. Several readbacks with
--           no upload between them are passes of one step (as in speculative
--           decoding), where at most ten of them follow each upload, nearly
--           always the same number. One thread drives a process: of those with
--           a regular period, half of all periods at least within a factor of
--           two of their median, the one that submits most. The loop paused
--           where more than ten median periods lie between a step's last call
--           and the next submission. What came before the first readback is a
--           step only from the last wait on; fewer than five steps before the
--           first pause are set-up where the loop is longer than that. Prefill
--           are the first steps after a pause that upload at least twice the
--           median, and decode those that upload less, in a process whose loop
--           has both, reads back, and leaves no more than a quarter of its
--           launches to other threads (as training does). Launches that are
--           counted in the kernel are not seen here.
CREATE VIEW _pattern_steps AS
WITH marked AS (
  SELECT run, pid FROM _engine_steps
  UNION
  SELECT run, pid FROM _annotated_steps
),

marked_runs AS (
  SELECT DISTINCT run
  FROM marked
),

submitting AS (
  SELECT DISTINCT cuda_api.run
  FROM cuda_api
  INNER JOIN marked
    ON cuda_api.run = marked.run
    AND cuda_api.pid = marked.pid
  WHERE cuda_api.depth = 0
    AND cuda_api."class" IN ('copy', 'launch', 'graph', 'collective')
),

-- Runs without steps, and those whose steps leave the device to workers.
unmarked AS (
  SELECT runs.run, marked_runs.run IS NOT NULL AS is_worker
  FROM runs
  LEFT JOIN marked_runs
    ON runs.run = marked_runs.run
  WHERE runs.run NOT IN (SELECT submitting.run FROM submitting)
),

-- 1: upload, 2: other work, 3: copy to the host, 4: wait, 5: event recorded.
calls AS (
  SELECT
    api.run, api.pid, api.tid, api.ts_ns,
    api.ts_ns + api.dur_ns AS end_ns,
    CASE
      WHEN api."class" = 'copy' AND api.copy_kind = 'h2d' THEN 1
      WHEN api."class" = 'copy' AND api.copy_kind = 'd2h' THEN 3
      WHEN api."class" = 'sync' THEN 4
      WHEN api."class" = 'event' THEN 5
      ELSE 2
    END AS code,
    CASE WHEN api.copy_kind = 'h2d' THEN api.size_bytes END AS upload_bytes
  FROM cuda_api AS api
  WHERE api.depth = 0
    AND (
      api."class" IN ('launch', 'graph', 'collective', 'memset')
      OR (api."class" = 'sync' AND NOT contains(api.api, 'Query'))
      OR (
        api."class" = 'copy'
        AND api.copy_kind IN ('h2d', 'd2h', 'd2d', 'p2p')
      )
      OR (api."class" = 'event' AND contains(api.api, 'EventRecord'))
    )
    AND api.run IN (SELECT unmarked.run FROM unmarked)
),

threads_seen AS (
  SELECT
    run, pid, tid,
    count(*) FILTER (code <= 2) AS submissions,
    count(*) FILTER (code = 3) AS readbacks,
    count(*) FILTER (code = 4) AS waits,
    count(*) FILTER (code = 5) AS records
  FROM calls
  GROUP BY run, pid, tid
),

processes_seen AS (
  SELECT
    run, pid,
    sum(submissions) AS submissions,
    sum(readbacks) AS readbacks
  FROM threads_seen
  GROUP BY run, pid
),

-- What ends a thread's step: 3 copies to the host, 4 waits, 5 events recorded.
candidates AS (
  SELECT
    threads_seen.run, threads_seen.pid, threads_seen.tid,
    threads_seen.submissions,
    processes_seen.readbacks,
    processes_seen.submissions - threads_seen.submissions
      <= processes_seen.submissions / 4 AS is_alone,
    CASE
      WHEN threads_seen.readbacks >= 4 THEN 3
      WHEN threads_seen.waits >= 4 THEN 4
      ELSE 5
    END AS turn
  FROM threads_seen
  INNER JOIN processes_seen
    ON threads_seen.run = processes_seen.run
    AND threads_seen.pid = processes_seen.pid
  WHERE threads_seen.submissions >= 4
    AND threads_seen.submissions * 10 >= processes_seen.submissions
    AND (
      threads_seen.readbacks >= 4
      OR threads_seen.waits >= 4
      OR (threads_seen.records >= 4 AND processes_seen.readbacks >= 4)
    )
),

ordered AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.code,
    candidates.turn,
    lag(calls.code) OVER thread AS before,
    lag(calls.code, 2) OVER thread AS before_that,
    lag(calls.end_ns) OVER thread AS before_end_ns,
    calls.end_ns
  FROM calls
  INNER JOIN candidates
    ON calls.run = candidates.run
    AND calls.pid = candidates.pid
    AND calls.tid = candidates.tid
  WHERE calls.code <= 4 OR candidates.turn = 5
  WINDOW thread AS (
    PARTITION BY calls.run, calls.pid, calls.tid
    ORDER BY calls.ts_ns, calls.code
  )
),

turns AS (
  SELECT
    run, pid, tid, ts_ns, before_end_ns,
    CASE turn
      WHEN 3 THEN before = 3 OR (before = 4 AND before_that IN (3, 4))
      WHEN 4 THEN before = 4 AND (before_that IS NULL OR before_that <> 1)
      ELSE before = 5
    END AS is_turn
  FROM ordered
  WHERE code <= 2
    AND before >= 3
    AND (before <> 4 OR before_that IS NULL OR before_that <> 1)
),

first_turns AS (
  SELECT run, pid, tid, min(ts_ns) AS ts_ns
  FROM turns
  WHERE is_turn
  GROUP BY run, pid, tid
),

-- The loop's first step follows no readback, but set-up ends with a wait.
set_up AS (
  SELECT turns.run, turns.pid, turns.tid, max(turns.ts_ns) AS ts_ns
  FROM turns
  INNER JOIN first_turns
    ON turns.run = first_turns.run
    AND turns.pid = first_turns.pid
    AND turns.tid = first_turns.tid
  WHERE turns.ts_ns < first_turns.ts_ns
  GROUP BY turns.run, turns.pid, turns.tid
),

segments AS (
  SELECT turns.run, turns.pid, turns.tid, turns.ts_ns, turns.before_end_ns
  FROM turns
  LEFT JOIN set_up
    ON turns.run = set_up.run
    AND turns.pid = set_up.pid
    AND turns.tid = set_up.tid
  WHERE turns.is_turn
    OR turns.ts_ns = set_up.ts_ns
),

uploads AS (
  SELECT
    segments.run, segments.pid, segments.tid, segments.ts_ns,
    sum(calls.upload_bytes) AS upload_bytes,
    max(calls.upload_bytes) AS largest_bytes
  FROM calls
  ASOF JOIN segments
    ON calls.run = segments.run
    AND calls.pid = segments.pid
    AND calls.tid = segments.tid
    AND calls.ts_ns >= segments.ts_ns
  WHERE calls.code = 1
  GROUP BY segments.run, segments.pid, segments.tid, segments.ts_ns
),

numbered AS (
  SELECT
    segments.run, segments.pid, segments.tid, segments.ts_ns,
    segments.before_end_ns,
    uploads.ts_ns IS NOT NULL AS has_upload,
    row_number() OVER (
      PARTITION BY segments.run, segments.pid, segments.tid
      ORDER BY segments.ts_ns
    ) AS segment
  FROM segments
  LEFT JOIN uploads
    ON segments.run = uploads.run
    AND segments.pid = uploads.pid
    AND segments.tid = uploads.tid
    AND segments.ts_ns = uploads.ts_ns
),

passes AS (
  SELECT
    run, pid, tid,
    lead(segment) OVER (PARTITION BY run, pid, tid ORDER BY segment) - segment
      AS passes
  FROM numbered
  WHERE has_upload
),

counted AS (
  SELECT run, pid, tid, passes, count(*) AS steps
  FROM passes
  WHERE passes IS NOT NULL
  GROUP BY run, pid, tid, passes
),

in_passes AS (
  SELECT run, pid, tid
  FROM counted
  GROUP BY run, pid, tid
  HAVING arg_max(passes, steps) BETWEEN 2 AND 10
    AND max(steps) >= 0.7 * sum(steps)
),

-- What the thread submits after its last readback is no step.
last_turns AS (
  SELECT
    ordered.run, ordered.pid, ordered.tid,
    max(ordered.ts_ns) AS ts_ns,
    arg_max_null(ordered.end_ns, ordered.ts_ns) AS end_ns
  FROM ordered
  WHERE ordered.code = ordered.turn
  GROUP BY ordered.run, ordered.pid, ordered.tid
),

starts AS (
  SELECT
    numbered.run, numbered.pid, numbered.tid, numbered.ts_ns,
    lead(numbered.ts_ns) OVER thread AS next_ns,
    coalesce(lead(numbered.before_end_ns) OVER thread, last_turns.end_ns)
      AS end_ns
  FROM numbered
  INNER JOIN last_turns
    ON numbered.run = last_turns.run
    AND numbered.pid = last_turns.pid
    AND numbered.tid = last_turns.tid
    AND numbered.ts_ns < last_turns.ts_ns
  LEFT JOIN in_passes
    ON numbered.run = in_passes.run
    AND numbered.pid = in_passes.pid
    AND numbered.tid = in_passes.tid
  WHERE numbered.has_upload
    OR in_passes.tid IS NULL
  WINDOW thread AS (
    PARTITION BY numbered.run, numbered.pid, numbered.tid
    ORDER BY numbered.ts_ns
  )
),

medians AS (
  SELECT run, pid, tid, quantile_disc(next_ns - ts_ns, 0.5) AS period_ns
  FROM starts
  GROUP BY run, pid, tid
),

regular AS (
  SELECT
    starts.run, starts.pid, starts.tid,
    any_value(medians.period_ns) AS period_ns,
    any_value(candidates.readbacks) >= count(*) / 2 AS reads_back,
    any_value(candidates.is_alone) AS is_alone,
    row_number() OVER (
      PARTITION BY starts.run, starts.pid
      ORDER BY any_value(candidates.submissions) DESC, starts.tid
    ) AS place
  FROM starts
  INNER JOIN medians
    ON starts.run = medians.run
    AND starts.pid = medians.pid
    AND starts.tid = medians.tid
  INNER JOIN candidates
    ON starts.run = candidates.run
    AND starts.pid = candidates.pid
    AND starts.tid = candidates.tid
  GROUP BY starts.run, starts.pid, starts.tid
  HAVING count(starts.next_ns) >= 3
    AND count(*) FILTER (
      starts.next_ns - starts.ts_ns
      BETWEEN medians.period_ns / 2 AND 2 * medians.period_ns
    ) >= 0.5 * count(starts.next_ns)
),

paused AS (
  SELECT
    starts.run, starts.pid, starts.tid, starts.ts_ns, starts.next_ns,
    starts.end_ns,
    regular.reads_back, regular.is_alone,
    starts.next_ns - starts.end_ns > 10 * regular.period_ns AS is_paused
  FROM starts
  INNER JOIN regular
    ON starts.run = regular.run
    AND starts.pid = regular.pid
    AND starts.tid = regular.tid
    AND regular.place = 1
),

sequences AS (
  SELECT
    run, pid, tid, ts_ns, next_ns, end_ns, reads_back, is_alone, is_paused,
    coalesce(sum(CASE WHEN is_paused THEN 1 ELSE 0 END) OVER (
      PARTITION BY run, pid, tid
      ORDER BY ts_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ), 0) AS sequence
  FROM paused
),

filled AS (
  SELECT
    sequences.run, sequences.pid, sequences.tid, sequences.ts_ns,
    sequences.next_ns, sequences.end_ns, sequences.reads_back,
    sequences.is_alone, sequences.is_paused, sequences.sequence,
    coalesce(sum(uploads.upload_bytes), 0) AS upload_bytes,
    coalesce(max(uploads.largest_bytes), 0) AS largest_bytes
  FROM sequences
  LEFT JOIN uploads
    ON sequences.run = uploads.run
    AND sequences.pid = uploads.pid
    AND sequences.tid = uploads.tid
    AND sequences.ts_ns = uploads.ts_ns
  GROUP BY ALL
),

sized AS (
  SELECT
    run, pid, tid, sequence,
    count(*) AS steps,
    quantile_disc(upload_bytes, 0.5) AS upload_bytes
  FROM filled
  GROUP BY run, pid, tid, sequence
),

loops AS (
  SELECT run, pid, tid, max(steps) AS steps
  FROM sized
  GROUP BY run, pid, tid
),

judged AS (
  SELECT
    filled.run, filled.pid, filled.tid, filled.ts_ns, filled.next_ns,
    filled.end_ns, filled.is_paused, filled.reads_back, filled.is_alone,
    filled.sequence,
    sized.upload_bytes > 0
      AND filled.upload_bytes >= 2 * sized.upload_bytes AS is_large,
    filled.largest_bytes >= 1048576 AS is_bulk
  FROM filled
  INNER JOIN sized
    ON filled.run = sized.run
    AND filled.pid = sized.pid
    AND filled.tid = sized.tid
    AND filled.sequence = sized.sequence
  INNER JOIN loops
    ON filled.run = loops.run
    AND filled.pid = loops.pid
    AND filled.tid = loops.tid
  WHERE filled.sequence > 0
    OR sized.steps >= 5
    OR loops.steps < 5
),

told AS (
  SELECT
    run, pid, tid, ts_ns, next_ns, end_ns, is_paused, is_large, is_bulk,
    -- Large ones alone so far: the sequence's first steps.
    bool_and(is_large) OVER (
      PARTITION BY run, pid, tid, sequence
      ORDER BY ts_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS is_leading,
    reads_back AND is_alone AS may_tell
  FROM judged
),

inference AS (
  SELECT run, pid, tid
  FROM told
  GROUP BY run, pid, tid
  HAVING bool_or(is_leading AND may_tell)
)

SELECT
  told.run,
  'pattern' AS engine,
  told.pid, told.tid, told.ts_ns,
  told.end_ns - told.ts_ns AS dur_ns,
  CASE WHEN NOT told.is_paused THEN told.next_ns - told.ts_ns END AS period_ns,
  CASE
    WHEN inference.tid IS NULL OR told.is_bulk THEN NULL
    WHEN told.is_leading THEN 'prefill'
    WHEN NOT told.is_large THEN 'decode'
  END AS phase,
  unmarked.is_worker
FROM told
INNER JOIN unmarked
  ON told.run = unmarked.run
LEFT JOIN inference
  ON told.run = inference.run
  AND told.pid = inference.pid
  AND told.tid = inference.tid;
