-- _process_names: which program processes run.
-- requires: processes
-- grain:    one row per process id of processes
-- columns:
--   run  VARCHAR  label of the run
--   pid  INTEGER  process
--   exe  VARCHAR  path of the last program in it; NULL: not known
-- caveats:  where a process id is used again, both are taken for one.
CREATE VIEW _process_names AS
SELECT
  run, pid,
  arg_max(exe, ts_ns) AS exe
FROM processes
GROUP BY run, pid;
