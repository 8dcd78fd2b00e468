-- _thread_names: what threads are called.
-- requires: threads
-- grain:    one row per thread of threads
-- columns:
--   run     VARCHAR  label of the run
--   pid     INTEGER  process
--   tid     INTEGER  thread
--   thread  VARCHAR  last name of the thread; NULL: not known
-- caveats:  where a thread id is used again, both threads are taken for one,
--           under the later name.
CREATE VIEW _thread_names AS
SELECT
  run, pid, tid,
  arg_max(name, ts_ns) AS thread
FROM threads
GROUP BY run, pid, tid;
