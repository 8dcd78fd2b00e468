-- _counted_once: launches counted in the kernel, each launch once.
-- requires: _counted_launches
-- grain:    one row per row of _counted_launches that stands
-- columns:
--   run            VARCHAR  label of the run
--   pid            INTEGER  process
--   tid            INTEGER  thread
--   ts_ns          BIGINT   start of the window, ns of CLOCK_MONOTONIC
--   window_ns      BIGINT   length of the window, ns, > 0
--   represents_ns  BIGINT   as in _counted_launches
--   class          VARCHAR  launch or graph
--   api            VARCHAR  function name without version suffix
--   calls          BIGINT   calls seen
--   total_ns       BIGINT   sum of their lengths, ns
-- caveats:  a launch by the runtime is counted as the driver's launch inside it
--           too: of the two layers' counts of a window those with the larger
--           sum of lengths stand.
CREATE VIEW _counted_once AS
WITH layers AS (
  SELECT
    run, pid, tid, ts_ns, window_ns, represents_ns, layer,
    sum(total_ns) AS total_ns
  FROM _counted_launches
  GROUP BY run, pid, tid, ts_ns, window_ns, represents_ns, layer
),

chosen AS (
  SELECT
    run, pid, tid, ts_ns, window_ns, represents_ns,
    arg_max(layer, (total_ns, layer)) AS layer
  FROM layers
  GROUP BY run, pid, tid, ts_ns, window_ns, represents_ns
)

SELECT
  counted.run, counted.pid, counted.tid, counted.ts_ns, counted.window_ns,
  counted.represents_ns, counted."class", counted.api, counted.calls,
  counted.total_ns
FROM _counted_launches AS counted
INNER JOIN chosen
  ON counted.run = chosen.run
  AND counted.pid = chosen.pid
  AND counted.tid = chosen.tid
  AND counted.ts_ns = chosen.ts_ns
  AND counted.window_ns = chosen.window_ns
  AND counted.represents_ns = chosen.represents_ns
  AND counted.layer = chosen.layer;
