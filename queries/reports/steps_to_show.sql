-- steps_to_show: which few of many steps are worth a look.
-- requires: steps
-- grain:    one row per step and reason to show it, by reason
-- columns:
--   run        VARCHAR  label of the run
--   reason     VARCHAR  example: asked for; median, p90, p99: a step of that
--                       length; slowest; first
--   place      BIGINT   number of the step among those of its reason, from 1
--   step_id    BIGINT   number of the step, as in the view steps
--   engine     VARCHAR  as in the view steps
--   phase      VARCHAR  its phase; NULL: not told
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   period_ns  BIGINT   length, ns
-- params:
--   engine    VARCHAR = NULL  choose by length among this engine's steps
--   phase     VARCHAR = NULL  choose by length among the steps of this phase
--   examples  VARCHAR = NULL  numbers of further steps, with commas between
--   slowest   BIGINT = 5      so many of the slowest
--   first     BIGINT = 3      so many of the first of the run
-- caveats:  a step of unknown length is never shown. Of several of the length
--           that is looked for the first is taken.
WITH known AS (
  SELECT run, step_id, engine, phase, pid, tid, ts_ns, period_ns
  FROM steps
  WHERE period_ns IS NOT NULL
),

compared AS (
  SELECT run, step_id, period_ns
  FROM known
  WHERE ($engine IS NULL OR engine = $engine)
    AND ($phase IS NULL OR phase = $phase)
),

lengths AS (
  SELECT
    run,
    unnest(['median', 'p90', 'p99']) AS reason,
    unnest(quantile_disc(period_ns, [0.5, 0.9, 0.99])) AS period_ns
  FROM compared
  GROUP BY run
),

asked AS (
  SELECT
    row_number() OVER () AS place,
    try_cast(trim(listed.word) AS BIGINT) AS step_id
  FROM (SELECT unnest(string_split($examples, ',')) AS word) AS listed
),

chosen AS (
  SELECT
    known.run, known.step_id,
    'example' AS reason,
    min(asked.place) AS place
  FROM known
  INNER JOIN asked
    ON known.step_id = asked.step_id
  GROUP BY known.run, known.step_id
  UNION ALL
  SELECT
    compared.run,
    min(compared.step_id) AS step_id,
    lengths.reason,
    1 AS place
  FROM compared
  INNER JOIN lengths
    ON compared.run = lengths.run
    AND compared.period_ns = lengths.period_ns
  GROUP BY compared.run, lengths.reason
  UNION ALL
  SELECT
    run, step_id,
    'slowest' AS reason,
    row_number() OVER (PARTITION BY run ORDER BY period_ns DESC, step_id)
      AS place
  FROM compared
  QUALIFY place <= $slowest
  UNION ALL
  SELECT
    run, step_id,
    'first' AS reason,
    row_number() OVER (PARTITION BY run ORDER BY ts_ns, step_id) AS place
  FROM known
  QUALIFY place <= $first
)

SELECT
  known.run,
  chosen.reason,
  chosen.place,
  known.step_id,
  known.engine,
  known.phase,
  known.pid,
  known.tid,
  known.ts_ns,
  known.period_ns
FROM chosen
INNER JOIN known
  ON chosen.run = known.run
  AND chosen.step_id = known.step_id
ORDER BY
  known.run,
  list_position(
    ['median', 'example', 'p90', 'p99', 'slowest', 'first'], chosen.reason
  ),
  chosen.place,
  known.step_id;
