-- _annotated_steps: steps told from names that profilers and frameworks give.
-- requires: runs, nvtx, _step_rules, _engine_steps
-- grain:    one row per step of a run that has no _engine_steps
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   engine     VARCHAR  what made the range, as in _step_rules
--   pid        INTEGER  process
--   tid        INTEGER  thread of the range
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   length of the range, ns; NULL while open
--   period_ns  BIGINT   start of the thread's next step less this one's, ns;
--                       NULL: the last one, or the loop paused in between
--   phase      VARCHAR  prefill, decode, mixed or train; NULL: neither the
--                       name nor what is inside tells
--   requests   BIGINT   requests in the batch; NULL: not told
--   tokens     BIGINT   NULL: no name tells it in all versions
-- caveats:  a name is compared in lower case, without its numbers and without
--           what follows a `#`, a `:` or `, op_id`: so `ProfilerStep#17` and
--           `Iteration 17` are found, `iter_17_forward` is not. A rule counts
--           where some thread has two such ranges. The loop paused where the
--           time between a range's end and the next one's start is more than
--           ten times the median period of its thread.
CREATE VIEW _annotated_steps AS
WITH unmarked AS (
  SELECT runs.run
  FROM runs
  WHERE runs.run NOT IN (SELECT marked.run FROM _engine_steps AS marked)
),

-- Names are few where ranges are many.
names AS (
  SELECT DISTINCT nvtx.name
  FROM nvtx
  WHERE nvtx.kind <> 'mark'
    AND nvtx.domain IS DISTINCT FROM 'cctrace'
    AND nvtx.run IN (SELECT unmarked.run FROM unmarked)
),

keys AS (
  SELECT
    name,
    lower(rtrim(
      translate(
        split_part(split_part(split_part(name, ', op_id', 1), ':', 1), '#', 1),
        '0123456789', ''
      ),
      ' _-=[]'
    )) AS step
  FROM names
),

matched AS (
  SELECT
    keys.name, rules.engine, rules.step, rules.phase, rules.rank,
    TRY_CAST(
      regexp_extract(keys.name, rules.prefills, 1) AS BIGINT
    ) AS prefills,
    TRY_CAST(regexp_extract(keys.name, rules.decodes, 1) AS BIGINT) AS decodes
  FROM keys
  INNER JOIN _step_rules AS rules
    ON keys.step = rules.step
  WHERE rules.rank > 0
),

ranges AS (
  SELECT
    nvtx.run, nvtx.pid, nvtx.tid, nvtx.ts_ns, nvtx.dur_ns,
    matched.engine, matched.rank, matched.prefills, matched.decodes,
    CASE
      WHEN matched.phase IS NOT NULL THEN matched.phase
      WHEN matched.prefills > 0 AND matched.decodes > 0 THEN 'mixed'
      WHEN matched.prefills > 0 THEN 'prefill'
      WHEN matched.decodes > 0 THEN 'decode'
    END AS phase
  FROM nvtx
  INNER JOIN matched
    ON nvtx.name = matched.name
  WHERE nvtx.kind <> 'mark'
    AND nvtx.domain IS DISTINCT FROM 'cctrace'
    AND nvtx.run IN (SELECT unmarked.run FROM unmarked)
),

repeated AS (
  SELECT run, rank
  FROM ranges
  GROUP BY run, pid, tid, rank
  HAVING count(*) > 1
),

chosen AS (
  SELECT run, min(rank) AS rank
  FROM repeated
  GROUP BY run
),

followed AS (
  SELECT
    ranges.run, ranges.engine, ranges.pid, ranges.tid, ranges.ts_ns,
    max(ranges.dur_ns) AS dur_ns,
    max(ranges.phase) AS phase,
    max(ranges.prefills) AS prefills,
    max(ranges.decodes) AS decodes,
    lead(ranges.ts_ns) OVER (
      PARTITION BY ranges.run, ranges.pid, ranges.tid
      ORDER BY ranges.ts_ns
    ) AS next_ns
  FROM ranges
  INNER JOIN chosen
    ON ranges.run = chosen.run
    AND ranges.rank = chosen.rank
  GROUP BY
    ranges.run, ranges.engine, ranges.pid, ranges.tid, ranges.ts_ns
),

medians AS (
  SELECT run, pid, tid, quantile_disc(next_ns - ts_ns, 0.5) AS period_ns
  FROM followed
  GROUP BY run, pid, tid
),

spaced AS (
  SELECT
    followed.run, followed.engine, followed.pid, followed.tid,
    followed.ts_ns, followed.dur_ns, followed.phase, followed.prefills,
    followed.decodes,
    CASE
      WHEN followed.next_ns - followed.ts_ns - coalesce(followed.dur_ns, 0)
        <= 10 * medians.period_ns
        THEN followed.next_ns - followed.ts_ns
    END AS period_ns
  FROM followed
  INNER JOIN medians
    ON followed.run = medians.run
    AND followed.pid = medians.pid
    AND followed.tid = medians.tid
),

-- A step trains where a backward pass or an optimizer starts inside, on
-- whatever thread of the process: autograd has threads of its own.
training AS (
  SELECT nvtx.run, nvtx.pid, medians.tid, nvtx.ts_ns
  FROM nvtx
  INNER JOIN medians
    ON nvtx.run = medians.run
    AND nvtx.pid = medians.pid
  WHERE nvtx.kind <> 'mark'
    AND nvtx.name IN (
      SELECT keys.name
      FROM keys
      WHERE keys.step = 'optimizer.step'
        OR contains(lower(keys.name), 'backward')
    )
),

trained AS (
  SELECT DISTINCT spaced.run, spaced.pid, spaced.tid, spaced.ts_ns
  FROM training
  ASOF JOIN spaced
    ON training.run = spaced.run
    AND training.pid = spaced.pid
    AND training.tid = spaced.tid
    AND training.ts_ns >= spaced.ts_ns
  WHERE training.ts_ns
    < spaced.ts_ns + coalesce(spaced.period_ns, spaced.dur_ns)
)

SELECT
  spaced.run, spaced.engine, spaced.pid, spaced.tid, spaced.ts_ns,
  spaced.dur_ns, spaced.period_ns,
  CASE
    WHEN spaced.phase IS NOT NULL THEN spaced.phase
    WHEN trained.ts_ns IS NOT NULL THEN 'train'
  END AS phase,
  spaced.prefills + spaced.decodes AS requests,
  CAST(NULL AS BIGINT) AS tokens
FROM spaced
LEFT JOIN trained
  ON spaced.run = trained.run
  AND spaced.pid = trained.pid
  AND spaced.tid = trained.tid
  AND spaced.ts_ns = trained.ts_ns;
