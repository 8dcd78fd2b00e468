-- _event_losses: losses that cost events of which the parts of a step are made.
-- requires: losses
-- grain:    one row per row of losses that cost events of cuda, sched or nvtx
-- columns:
--   run       VARCHAR  label of the run
--   pid       INTEGER  process; NULL: of the recorder itself
--   tid       INTEGER  thread; NULL: not one thread's
--   source    VARCHAR  source that lost them; bpf and recorder stand for any
--   count     BIGINT   events lost, > 0
--   first_ns  BIGINT   first loss, ns of CLOCK_MONOTONIC
--   last_ns   BIGINT   last loss, ns of CLOCK_MONOTONIC
-- caveats:  losses at an unknown time are left out, and so are reasons that
--           leave the event in the run.
CREATE VIEW _event_losses AS
SELECT run, pid, tid, source, "count", first_ns, last_ns
FROM losses
WHERE source IN ('cuda', 'sched', 'nvtx', 'bpf', 'recorder')
  AND first_ns IS NOT NULL
  AND last_ns IS NOT NULL
  AND reason NOT IN (
    'string_table_full', 'unmatched_pop', 'truncated_string', 'bad_ring',
    'bad_frame', 'bad_dictionary', 'bad_message', 'untraced', 'unknown_key',
    'unreadable_argument', 'bad_argument', 'partial_size', 'ranges_full',
    'late_attach', 'stack_ring_full', 'stack_map_full', 'stack_truncated',
    'stack_unreadable', 'stack_astray', 'stack_unresolved', 'stack_failed',
    'stack_unknown'
  );
