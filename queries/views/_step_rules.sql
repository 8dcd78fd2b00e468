-- _step_rules: how steps are found among NVTX ranges.
-- requires:
-- grain:    one row per range that is a step
-- columns:
--   engine      VARCHAR  the engine, or what made the range
--   domain      VARCHAR  NVTX domain of its ranges; NULL: any but cctrace
--   step        VARCHAR  range that is a step; of an annotation its name less
--                        its numbers, in lower case (see _annotated_steps)
--   facts_from  VARCHAR  mark inside the step that tells phase, requests and
--                        tokens; NULL: the step range does itself
--   break_at    VARCHAR  range whose start ends the sequence of steps; NULL:
--                        none does
--   phase       VARCHAR  phase of these steps; NULL: of an annotation what its
--                        name counts, or train where a backward pass or an
--                        optimizer starts inside
--   prefills    VARCHAR  pattern of requests in prefill in the name; NULL: it
--                        does not count them
--   decodes     VARCHAR  pattern of requests in decode; NULL as for prefills
--   rank        INTEGER  0: the engine's own steps; of annotations only those
--                        of the lowest rank that a run has are its steps
-- caveats:  any other domain: a range named `step` is a step, one named
--           `generate` a break. Where a run marks its steps so, or has steps of
--           rank 0, its annotations are none.
CREATE VIEW _step_rules AS
SELECT
  engine, domain, step, facts_from, break_at, phase, prefills, decodes, rank
FROM (
  VALUES
    (
      'vllm', 'cctrace', 'vllm.step', 'vllm.scheduled',
      'vllm.wait_for_requests', NULL, NULL, NULL, 0
    ),
    (
      'transformers', 'cctrace', 'transformers.forward', NULL,
      'transformers.generate', NULL, NULL, NULL, 0
    ),
    -- Inference engines that say in the name what is in the batch.
    (
      'vllm', NULL, 'execute_context_()_generation_()', NULL, NULL, NULL,
      'context_([0-9]+)', 'generation_([0-9]+)', 1
    ),
    (
      'tensorrt_llm', NULL, '[executor] _forward_step', NULL, NULL, NULL,
      '([0-9]+) ctx req', '([0-9]+) gen req', 2
    ),
    -- torch.profiler: its step() is called once an iteration.
    ('profiler', NULL, 'profilerstep', NULL, NULL, NULL, NULL, NULL, 3),
    -- Frameworks' own names, and loops that number their iterations.
    (
      'lightning', NULL, '[pl][profile]run_training_batch', NULL, NULL,
      'train', NULL, NULL, 4
    ),
    ('training', NULL, 'train_step', NULL, NULL, 'train', NULL, NULL, 5),
    ('training', NULL, 'training_step', NULL, NULL, 'train', NULL, NULL, 6),
    ('training', NULL, 'train_iteration', NULL, NULL, 'train', NULL, NULL, 7),
    ('iteration', NULL, 'iteration', NULL, NULL, NULL, NULL, NULL, 8),
    ('iteration', NULL, 'iter', NULL, NULL, NULL, NULL, NULL, 9),
    ('iteration', NULL, 'step', NULL, NULL, NULL, NULL, NULL, 10),
    -- torch marks each call of an optimizer by itself.
    ('optimizer', NULL, 'optimizer.step', NULL, NULL, 'train', NULL, NULL, 11)
) AS rules(
  engine, domain, step, facts_from, break_at, phase, prefills, decodes, rank
);
