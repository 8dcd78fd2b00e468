-- copy_concurrency: do copies on different streams of a process overlap?
-- requires: runs, cuda_api, gpu_activity, _device_ops
-- grain:    one row per run and process with copies in flight together; one for
--           a run without any
-- columns:
--   run          VARCHAR  label of the run
--   answer       VARCHAR  yes: at least half of the pairs overlapped; no: at
--                         most a tenth did; unknown: in between, or fewer than
--                         $min_pairs
--   evidence     VARCHAR  what decided, in a sentence
--   pid          INTEGER  process; NULL: none has such pairs
--   source       VARCHAR  observed: the copies themselves, from gpu_activity;
--                         inferred: from calls that return when their copy is
--                         done; NULL as pid
--   pairs        BIGINT   copies over the bus that were in flight together
--                         with the one before on another stream
--   overlapped   BIGINT   of these, those that ran at the same time
--   concurrency  DOUBLE   copies at a time, mean over the time any of a pair
--                         was under way; 1: one after the other; NULL: no pairs
-- params:
--   min_pairs    BIGINT = 20     pairs it takes to tell
--   min_work_ns  BIGINT = 50000  shortest copies that are looked at, ns
-- caveats:  observed copies are in flight together where the call for the later
--           one returned before the earlier one was through. Without
--           gpu_activity only calls that return when their copy is done tell:
--           two of different threads and streams, under way at the same time,
--           ran one after the other if together they took at least 0.8 times
--           as long as the bridge model gives them one after the other. Copies
--           that take the device less than $min_work_ns are left out: their
--           tolls hide the answer. Under confidential computing secure copies
--           of a context run one at a time (arXiv 2606.23969).
WITH long_copies AS (
  SELECT
    run, pid, device, stream, ts_ns, dur_ns, correlation_id
  FROM gpu_activity
  WHERE "class" = 'copy'
    AND copy_kind IN ('h2d', 'd2h')
    AND pid IS NOT NULL
    AND dur_ns >= $min_work_ns
),

seen AS (
  SELECT
    activity.run, activity.pid, activity.device, activity.stream,
    activity.ts_ns,
    activity.ts_ns + activity.dur_ns AS end_ns,
    calls.ts_ns + calls.dur_ns AS given_ns
  FROM long_copies AS activity
  LEFT JOIN cuda_api AS calls
    ON activity.run = calls.run
    AND activity.pid = calls.pid
    AND activity.correlation_id = calls.correlation_id
    AND calls.depth = 0
),

seen_after AS (
  SELECT
    run, pid, stream, ts_ns, end_ns, given_ns,
    lag(stream) OVER earlier AS last_stream,
    lag(ts_ns) OVER earlier AS last_ts_ns,
    lag(end_ns) OVER earlier AS last_end_ns
  FROM seen
  WINDOW earlier AS (PARTITION BY run, pid, device ORDER BY ts_ns, end_ns)
),

watched AS (
  SELECT DISTINCT run, pid
  FROM gpu_activity
),

long_calls AS (
  SELECT run, pid, tid, stream, ts_ns, end_ns, work_ns
  FROM _device_ops
  WHERE blocks
    AND work_ns >= $min_work_ns
),

called AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.stream, calls.ts_ns, calls.end_ns,
    calls.work_ns
  FROM long_calls AS calls
  LEFT JOIN watched
    ON calls.run = watched.run
    AND calls.pid = watched.pid
  WHERE watched.pid IS NULL
),

called_after AS (
  SELECT
    run, pid, tid, stream, ts_ns, end_ns, work_ns,
    lag(tid) OVER earlier AS last_tid,
    lag(stream) OVER earlier AS last_stream,
    lag(ts_ns) OVER earlier AS last_ts_ns,
    lag(end_ns) OVER earlier AS last_end_ns,
    lag(work_ns) OVER earlier AS last_work_ns
  FROM called
  WINDOW earlier AS (PARTITION BY run, pid ORDER BY ts_ns, end_ns)
),

pairs AS (
  SELECT
    run, pid, 'observed' AS source,
    ts_ns < last_end_ns AS has_overlapped,
    end_ns - ts_ns + last_end_ns - last_ts_ns AS work_ns,
    greatest(end_ns, last_end_ns) - last_ts_ns
    - greatest(ts_ns - last_end_ns, 0) AS span_ns
  FROM seen_after
  WHERE stream <> last_stream
    AND coalesce(given_ns, ts_ns) < last_end_ns
  UNION ALL
  SELECT
    run, pid, 'inferred' AS source,
    greatest(end_ns, last_end_ns) - last_ts_ns < 0.8 * (work_ns + last_work_ns)
      AS has_overlapped,
    work_ns + last_work_ns AS work_ns,
    greatest(
      greatest(end_ns, last_end_ns) - last_ts_ns,
      greatest(work_ns, last_work_ns)
    ) AS span_ns
  FROM called_after
  WHERE tid <> last_tid
    AND stream <> last_stream
    -- Each has half of itself to do while the other one is under way.
    AND least(end_ns, last_end_ns) - ts_ns
    >= 0.5 * least(work_ns, last_work_ns)
),

counted AS (
  SELECT
    run, pid, source,
    count(*) AS pairs,
    CAST(count_if(has_overlapped) AS BIGINT) AS overlapped,
    -- One after the other with a pause in between is no less than one.
    greatest(sum(work_ns) / sum(span_ns), 1) AS concurrency
  FROM pairs
  GROUP BY run, pid, source
),

judged AS (
  SELECT
    run, pid, source, pairs, overlapped, concurrency,
    CASE
      WHEN pairs < $min_pairs THEN 'unknown'
      WHEN overlapped >= 0.5 * pairs THEN 'yes'
      WHEN overlapped <= 0.1 * pairs THEN 'no'
      ELSE 'unknown'
    END AS answer,
    CASE
      WHEN pairs < $min_pairs THEN format(
        'only {:d} pairs of copies were in flight together on two streams; '
        'it takes {:d} to tell',
        pairs, CAST($min_pairs AS BIGINT)
      )
      ELSE format(
        '{:d} of {:d} pairs of copies in flight together ran at the same '
        'time, {:.2f} copies at a time ({})',
        overlapped, pairs, concurrency, source
      )
    END AS evidence
  FROM counted
)

SELECT
  runs.run,
  coalesce(judged.answer, 'unknown') AS answer,
  coalesce(
    judged.evidence,
    'no copies long enough to tell were in flight together on two streams of '
    'a process, as far as the run shows'
  ) AS evidence,
  judged.pid,
  judged.source,
  coalesce(judged.pairs, 0) AS pairs,
  coalesce(judged.overlapped, 0) AS overlapped,
  judged.concurrency
FROM runs
LEFT JOIN judged
  ON runs.run = judged.run
ORDER BY runs.run, judged.pid;
