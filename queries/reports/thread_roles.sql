-- thread_roles: is the thread that drives the loop also the one that waits for
--           the device?
-- requires: runs, steps, thread_roles
-- grain:    one row per thread that crosses the bridge or drives steps; one
--           without a thread where a run has none
-- columns:
--   run            VARCHAR  label of the run
--   answer         VARCHAR  yes, no or unknown
--   evidence       VARCHAR  what decided, in a sentence
--   pid            INTEGER  process; NULL: the run has no such thread
--   tid            INTEGER  thread; NULL as for pid
--   name           VARCHAR  last name of the thread; NULL: not known
--   role           VARCHAR  driver, submitter, collective, uploader, readback
--                           or host, as in the view
--   steps          BIGINT   steps it drives
--   calls          BIGINT   crossings
--   launches       BIGINT   launches of kernels and graphs
--   copies         BIGINT   copies
--   readbacks      BIGINT   copies to the host
--   waits          BIGINT   synchronising calls that wait: without queries
--   blocked_ns     BIGINT   time in copies to the host and in waits, ns
--   blocked_ratio  DOUBLE   blocked_ns over the time that its process's steps,
--                           or else a driving thread's of the run on average,
--                           take; NULL: no step has a length
-- params:
--   min_ratio  DOUBLE = 0.05  share of the loop from which waiting counts
-- caveats:  where the thread that drives the steps makes no call, because
--           worker processes do, the threads that submit stand for it: those of
--           the role submitter. blocked_ns is of the whole run, and so has the
--           waits of its set-up as well.
WITH lengths AS (
  SELECT run, pid, tid, sum(coalesce(period_ns, dur_ns)) AS loop_ns
  FROM steps
  GROUP BY run, pid, tid
),

process_lengths AS (
  SELECT run, pid, max(loop_ns) AS loop_ns
  FROM lengths
  GROUP BY run, pid
),

run_lengths AS (
  SELECT run, avg(loop_ns) AS loop_ns
  FROM lengths
  GROUP BY run
),

drivers AS (
  SELECT
    run,
    count(*) AS threads,
    count(*) FILTER (calls > 0) AS acting
  FROM thread_roles
  WHERE steps > 0
  GROUP BY run
),

rated AS (
  SELECT
    roles.run, roles.pid, roles.tid, roles.name, roles.role, roles.steps,
    roles.calls, roles.launches, roles.copies, roles.readbacks, roles.waits,
    roles.blocked_ns,
    roles.blocked_ns
    / nullif(coalesce(process_lengths.loop_ns, run_lengths.loop_ns), 0)
      AS blocked_ratio,
    drivers.acting = 0 AS is_by_workers,
    CASE
      WHEN drivers.acting = 0 THEN roles.role = 'submitter'
      ELSE roles.steps > 0
    END AS is_acting,
    coalesce(' (' || roles.name || ')', '') AS called
  FROM thread_roles AS roles
  INNER JOIN drivers
    ON roles.run = drivers.run
  LEFT JOIN process_lengths
    ON roles.run = process_lengths.run
    AND roles.pid = process_lengths.pid
  LEFT JOIN run_lengths
    ON roles.run = run_lengths.run
),

compared AS (
  SELECT
    run,
    $min_ratio AS ratio_needed,
    bool_or(is_by_workers) AS is_by_workers,
    count(*) FILTER (is_acting AND calls > 0) AS acting,
    max(blocked_ratio) FILTER (is_acting) AS ratio,
    max(blocked_ns) FILTER (is_acting) AS blocked_ns,
    arg_max(tid || called, blocked_ns) FILTER (is_acting) AS actor,
    max(blocked_ns) FILTER (NOT is_acting) AS other_ns,
    arg_max(tid || called, blocked_ns) FILTER (NOT is_acting) AS other,
    max(blocked_ratio) FILTER (NOT is_acting) AS other_ratio
  FROM rated
  GROUP BY run
),

answers AS (
  SELECT
    runs.run,
    CASE
      WHEN compared.ratio IS NULL OR compared.acting = 0 THEN 'unknown'
      WHEN compared.ratio >= compared.ratio_needed THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN compared.run IS NULL
        THEN 'no steps were found, so no thread is known to drive the loop'
      WHEN compared.acting = 0
        THEN 'no crossings of a thread that drives or submits were recorded'
      WHEN compared.ratio IS NULL
        THEN 'no step has a known length; it takes two'
      ELSE format(
        'thread {} {} {:.3f} ms in copies to the host and waits, {:.1f}% of '
        || 'the loop''s time, {}',
        compared.actor,
        CASE
          WHEN compared.is_by_workers
            THEN 'submits for a driving thread that makes no CUDA call, and '
              || 'spends'
          ELSE 'drives the loop and spends'
        END,
        compared.blocked_ns / 1e6, 100 * compared.ratio,
        CASE
          WHEN coalesce(compared.other_ns, 0) = 0
            THEN 'and no other thread waits'
          ELSE format(
            'and thread {} {:.3f} ms, {:.1f}%', compared.other,
            compared.other_ns / 1e6, 100 * compared.other_ratio
          )
        END
      )
    END AS evidence
  FROM runs
  LEFT JOIN compared
    ON runs.run = compared.run
)

SELECT
  answers.run,
  answers.answer,
  answers.evidence,
  roles.pid,
  roles.tid,
  roles.name,
  roles.role,
  roles.steps,
  roles.calls,
  roles.launches,
  roles.copies,
  roles.readbacks,
  roles.waits,
  roles.blocked_ns,
  round(rated.blocked_ratio, 4) AS blocked_ratio
FROM answers
LEFT JOIN thread_roles AS roles
  ON answers.run = roles.run
LEFT JOIN rated
  ON roles.run = rated.run
  AND roles.pid = rated.pid
  AND roles.tid = rated.tid
ORDER BY answers.run, roles.pid, roles.tid;
