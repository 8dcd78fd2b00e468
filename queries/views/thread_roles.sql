-- thread_roles: what each thread does in the loop, told from its crossings.
-- requires: crossings, steps, threads, _counted_launches
-- grain:    one row per thread that crosses the bridge or drives steps
-- materialize: yes
-- columns:
--   run         VARCHAR  label of the run
--   pid         INTEGER  process
--   tid         INTEGER  thread
--   name        VARCHAR  last name of the thread; NULL: not known
--   role        VARCHAR  driver: drives the loop; of the others, by what they
--                        do most: submitter: launches; collective; uploader:
--                        copies to the device; readback: copies to the host or
--                        waits; host: nothing of these
--   calls       BIGINT   crossings, launches counted in the kernel included
--   blocked_ns  BIGINT   time in copies to the host and in waits, ns
--   steps       BIGINT   steps it drives
--   launches    BIGINT   launches of kernels and graphs
--   copies      BIGINT   copies
--   readbacks   BIGINT   copies to the host
--   waits       BIGINT   synchronising calls that wait: without queries
--   evidence    VARCHAR  what the role was told from
-- caveats:  launches that were sampled in the kernel are scaled to all of the
--           time they stand for. Where a thread id is used again, both threads
--           are taken for one, under the later name.
CREATE VIEW thread_roles AS
WITH crossed AS (
  SELECT
    run, pid, tid,
    count(*) AS calls,
    count(*) FILTER ("class" IN ('launch', 'graph')) AS launches,
    count(*) FILTER ("class" = 'collective') AS collectives,
    count(*) FILTER ("class" = 'copy') AS copies,
    count(*) FILTER (copy_kind = 'h2d') AS uploads,
    count(*) FILTER (copy_kind = 'd2h') AS readbacks,
    count(*) FILTER ("class" = 'sync' AND NOT contains(api, 'Query')) AS waits,
    sum(dur_ns) FILTER (
      copy_kind = 'd2h' OR ("class" = 'sync' AND NOT contains(api, 'Query'))
    ) AS blocked_ns
  FROM crossings
  GROUP BY run, pid, tid
),

layers AS (
  SELECT
    run, pid, tid, layer,
    sum(calls * (represents_ns / window_ns)) AS launches
  FROM _counted_launches
  GROUP BY run, pid, tid, layer
),

-- A launch of the runtime is counted in the driver as well.
counted AS (
  SELECT run, pid, tid, CAST(round(max(launches)) AS BIGINT) AS launches
  FROM layers
  GROUP BY run, pid, tid
),

driven AS (
  SELECT run, pid, tid, count(*) AS steps
  FROM steps
  GROUP BY run, pid, tid
),

seen AS (
  SELECT run, pid, tid FROM crossed
  UNION
  SELECT run, pid, tid FROM counted
  UNION
  SELECT run, pid, tid FROM driven
),

names AS (
  SELECT run, pid, tid, arg_max(name, ts_ns) AS name
  FROM threads
  GROUP BY run, pid, tid
),

summed AS (
  SELECT
    seen.run, seen.pid, seen.tid, names.name,
    coalesce(driven.steps, 0) AS steps,
    coalesce(crossed.calls, 0) + coalesce(counted.launches, 0) AS calls,
    coalesce(crossed.launches, 0) + coalesce(counted.launches, 0) AS launches,
    coalesce(crossed.collectives, 0) AS collectives,
    coalesce(crossed.copies, 0) AS copies,
    coalesce(crossed.uploads, 0) AS uploads,
    coalesce(crossed.readbacks, 0) AS readbacks,
    coalesce(crossed.waits, 0) AS waits,
    CAST(coalesce(crossed.blocked_ns, 0) AS BIGINT) AS blocked_ns
  FROM seen
  LEFT JOIN crossed
    ON seen.run = crossed.run
    AND seen.pid = crossed.pid
    AND seen.tid = crossed.tid
  LEFT JOIN counted
    ON seen.run = counted.run
    AND seen.pid = counted.pid
    AND seen.tid = counted.tid
  LEFT JOIN driven
    ON seen.run = driven.run
    AND seen.pid = driven.pid
    AND seen.tid = driven.tid
  LEFT JOIN names
    ON seen.run = names.run
    AND seen.pid = names.pid
    AND seen.tid = names.tid
)

SELECT
  run, pid, tid, name,
  CASE
    WHEN steps > 0 THEN 'driver'
    WHEN launches > 0 AND launches >= greatest(collectives, uploads)
      THEN 'submitter'
    WHEN collectives > 0 AND collectives >= uploads THEN 'collective'
    WHEN uploads > readbacks THEN 'uploader'
    WHEN readbacks + waits > 0 THEN 'readback'
    ELSE 'host'
  END AS role,
  calls, blocked_ns, steps, launches, copies, readbacks, waits,
  format(
    'drives {} steps; {} launches, {} collectives, {} copies to the device, '
    || '{} to the host, {} waits; {:.3f} ms in the last two',
    steps, launches, collectives, uploads, readbacks, waits, blocked_ns / 1e6
  ) AS evidence
FROM summed;
