-- steps_around: the steps before and after some, as far as no pause is between.
-- requires: steps
-- grain:    one row per step named and step around it, itself among them
-- columns:
--   run        VARCHAR  label of the run
--   of_step    BIGINT   the step named
--   step_id    BIGINT   a step of the same engine and thread, at most so many
--                       before or after it
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   period_ns  BIGINT   length, ns
--   phase      VARCHAR  its phase; NULL: not told
-- params:
--   steps   VARCHAR = NULL  numbers of steps, with commas between
--   before  BIGINT = 3      so many before
--   after   BIGINT = 1      so many after
-- caveats:  a step of unknown length is followed by a pause, and is not here.
WITH tracked AS (
  SELECT
    run, engine, pid, tid, step_id, ts_ns, period_ns, phase,
    row_number() OVER track AS place,
    coalesce(
      ts_ns <> lag(ts_ns + period_ns) OVER track, TRUE
    ) AS is_first
  FROM steps
  WHERE period_ns IS NOT NULL
  WINDOW track AS (PARTITION BY run, engine, pid, tid ORDER BY ts_ns, step_id)
),

-- Steps that follow each other without a pause have the same number.
unbroken AS (
  SELECT
    run, engine, pid, tid, step_id, ts_ns, period_ns, phase, place,
    sum(CAST(is_first AS BIGINT)) OVER (
      PARTITION BY run, engine, pid, tid ORDER BY place
    ) AS stretch
  FROM tracked
),

named AS (
  SELECT
    run, engine, pid, tid, stretch,
    step_id AS of_step,
    place - $before AS from_place,
    place + $after AS until_place
  FROM unbroken
  WHERE step_id IN (
    SELECT try_cast(trim(listed.word) AS BIGINT)
    FROM (SELECT unnest(string_split($steps, ',')) AS word) AS listed
  )
)

SELECT
  named.run,
  named.of_step,
  unbroken.step_id,
  unbroken.pid,
  unbroken.tid,
  unbroken.ts_ns,
  unbroken.period_ns,
  unbroken.phase
FROM named
INNER JOIN unbroken
  ON named.run = unbroken.run
  AND named.engine = unbroken.engine
  AND named.pid = unbroken.pid
  AND named.tid = unbroken.tid
  AND named.stretch = unbroken.stretch
  AND unbroken.place BETWEEN named.from_place AND named.until_place
ORDER BY named.run, named.of_step, unbroken.ts_ns, unbroken.step_id;
