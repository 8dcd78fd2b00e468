-- _step_rules: how each engine's steps are found among its NVTX ranges.
-- requires:
-- grain:    one row per engine with ranges of its own vocabulary
-- columns:
--   engine      VARCHAR  the engine
--   domain      VARCHAR  NVTX domain of its ranges
--   step        VARCHAR  range that is a step
--   facts_from  VARCHAR  mark inside the step that tells phase, requests and
--                        tokens; NULL: the step range does itself
--   break_at    VARCHAR  range whose start ends the sequence of steps
-- caveats:  any other domain: a range named `step` is a step, one named
--           `generate` a break
CREATE VIEW _step_rules AS
SELECT engine, domain, step, facts_from, break_at
FROM (
  VALUES
    (
      'vllm', 'cctrace', 'vllm.step', 'vllm.scheduled',
      'vllm.wait_for_requests'
    ),
    (
      'transformers', 'cctrace', 'transformers.forward', NULL,
      'transformers.generate'
    )
) AS rules(engine, domain, step, facts_from, break_at);
