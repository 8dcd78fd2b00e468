-- _published_costs: what crossing the bridge is said to cost on a run's GPU,
--           without confidential computing (CC) and with it.
-- requires: _run_profiles, _bridge_profiles
-- grain:    one row per run, class, kind of copy and host memory
-- columns:
--   run              VARCHAR  label of the run
--   family           VARCHAR  b300 or h200: the GPU whose figures are taken
--   class            VARCHAR  as in _bridge_profiles
--   copy_kind        VARCHAR  as in _bridge_profiles
--   host_memory      VARCHAR  as in _bridge_profiles
--   open_ns          DOUBLE   the host's time in a call without CC, whatever
--                             the size, ns
--   cc_ns            DOUBLE   the same with CC, ns
--   open_latency_ns  DOUBLE   from there until the device starts, without CC,
--                             ns
--   cc_latency_ns    DOUBLE   the same with CC, ns
--   open_gb_per_s    DOUBLE   bandwidth without CC, 1e9 bytes per second; NULL:
--                             moves nothing
--   cc_gb_per_s      DOUBLE   the same with CC
--   open_mode        VARCHAR  async, staged or host_synchronous, without CC;
--                             NULL: no copy
--   cc_mode          VARCHAR  the same with CC
-- caveats:  figures of other machines; see _bridge_profiles.
CREATE VIEW _published_costs AS
WITH families AS (
  SELECT run, replace(profile, '-cc', '') AS family
  FROM _run_profiles
)

SELECT
  families.run, families.family,
  plain."class", plain.copy_kind, plain.host_memory,
  plain.toll_ns AS open_ns,
  secure.toll_ns AS cc_ns,
  plain.latency_ns AS open_latency_ns,
  secure.latency_ns AS cc_latency_ns,
  plain.gb_per_s AS open_gb_per_s,
  secure.gb_per_s AS cc_gb_per_s,
  plain.mode AS open_mode,
  secure.mode AS cc_mode
FROM families
INNER JOIN _bridge_profiles AS plain
  ON families.family = plain.profile
INNER JOIN _bridge_profiles AS secure
  ON families.family || '-cc' = secure.profile
  AND plain."class" = secure."class"
  AND plain.copy_kind IS NOT DISTINCT FROM secure.copy_kind
  AND plain.host_memory IS NOT DISTINCT FROM secure.host_memory;
