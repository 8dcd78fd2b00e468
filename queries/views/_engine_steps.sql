-- _engine_steps: steps that the engine itself, or its adapter, marked as such.
-- requires: nvtx, _step_rules
-- grain:    one row per step
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   engine     VARCHAR  vllm, transformers, or for ranges named `step` the
--                       NVTX domain (`default` for the default domain)
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   length of the step's own range, ns; NULL while open
--   period_ns  BIGINT   start of the next step of the same engine and thread
--                       less this one's, ns; NULL: the last one, or the loop
--                       paused in between
--   phase      VARCHAR  prefill, decode, mixed, or what the program says;
--                       NULL: it does not say
--   requests   BIGINT   requests in the batch; NULL: not told
--   tokens     BIGINT   tokens scheduled; NULL: not told
--   depth      INTEGER  nesting depth of the range, which orders those that
--                       start at the same ns
-- caveats:  a vllm.step range in which nothing was scheduled is no step, nor is
--           one whose vllm.scheduled mark was lost. The loop paused where a
--           vllm.wait_for_requests, transformers.generate or (for ranges named
--           `step`) generate range of the same domain starts between two steps.
--           Where a step was lost (see losses), the period before it reaches to
--           the next one.
CREATE VIEW _engine_steps AS
WITH ranges AS (
  SELECT
    nvtx.run, nvtx.pid, nvtx.tid, nvtx.ts_ns, nvtx.dur_ns, nvtx.domain,
    nvtx.category, nvtx.payload, nvtx.depth,
    rules.facts_from,
    coalesce(rules.engine, nvtx.domain, 'default') AS engine
  FROM nvtx
  LEFT JOIN _step_rules AS rules
    ON nvtx.domain = rules.domain
    AND nvtx.name = rules.step
  WHERE nvtx.kind <> 'mark'
    AND nvtx.name IN (
      'step', 'vllm.step', 'transformers.forward'
    )
    AND (
      rules.engine IS NOT NULL
      OR (nvtx.name = 'step' AND nvtx.domain IS DISTINCT FROM 'cctrace')
    )
),

marks AS (
  SELECT run, pid, tid, ts_ns, domain, name, category, payload
  FROM nvtx
  WHERE kind = 'mark'
    AND domain = 'cctrace'
    AND name = 'vllm.scheduled'
),

-- The first mark at or after the start tells, where it lies inside.
marked AS (
  SELECT
    ranges.run, ranges.pid, ranges.tid, ranges.ts_ns, ranges.dur_ns,
    ranges.domain, ranges.engine, ranges.depth,
    CASE
      WHEN ranges.facts_from IS NULL THEN ranges.category ELSE marks.category
    END AS phase,
    CASE
      WHEN ranges.facts_from IS NULL THEN ranges.payload ELSE marks.payload
    END AS batch
  FROM ranges
  ASOF LEFT JOIN marks
    ON ranges.run = marks.run
    AND ranges.pid = marks.pid
    AND ranges.tid = marks.tid
    AND ranges.facts_from = marks.name
    AND ranges.ts_ns <= marks.ts_ns
  WHERE ranges.facts_from IS NULL
    OR (
      marks.ts_ns IS NOT NULL
      AND (
        ranges.dur_ns IS NULL
        OR marks.ts_ns <= ranges.ts_ns + ranges.dur_ns
      )
    )
),

followed AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, domain, engine, phase, batch, depth,
    lead(ts_ns) OVER (
      PARTITION BY run, pid, tid, engine, domain
      ORDER BY ts_ns, depth
    ) AS next_ns
  FROM marked
),

breaks AS (
  SELECT
    nvtx.run, nvtx.pid, nvtx.tid, nvtx.ts_ns,
    coalesce(rules.engine, nvtx.domain, 'default') AS engine,
    nvtx.domain IS NULL AS has_no_domain
  FROM nvtx
  LEFT JOIN _step_rules AS rules
    ON nvtx.domain = rules.domain
    AND nvtx.name = rules.break_at
  WHERE nvtx.kind <> 'mark'
    AND nvtx.name IN (
      'generate', 'vllm.wait_for_requests', 'transformers.generate'
    )
    AND (
      rules.engine IS NOT NULL
      OR (nvtx.name = 'generate' AND nvtx.domain IS DISTINCT FROM 'cctrace')
    )
)

SELECT
  steps.run, steps.engine, steps.pid, steps.tid, steps.ts_ns, steps.dur_ns,
  CASE
    WHEN breaks.ts_ns > steps.ts_ns THEN NULL
    ELSE steps.next_ns - steps.ts_ns
  END AS period_ns,
  steps.phase,
  -- Requests and tokens share one payload, 32 bits each.
  CASE WHEN steps.batch >= 0 THEN steps.batch >> 32 END AS requests,
  CASE WHEN steps.batch >= 0 THEN steps.batch & 4294967295 END AS tokens,
  steps.depth
FROM followed AS steps
-- The last break before the next step starts.
ASOF LEFT JOIN breaks
  ON steps.run = breaks.run
  AND steps.pid = breaks.pid
  AND steps.tid = breaks.tid
  AND steps.engine = breaks.engine
  AND (steps.domain IS NULL) = breaks.has_no_domain
  AND steps.next_ns >= breaks.ts_ns;
