-- _run_profiles: which published figures a run is to be compared with.
-- requires: runs, cuda_api, _copy_waits, _bridge_profiles, _probe_costs
-- grain:    one row per run
-- materialize: yes
-- columns:
--   run      VARCHAR  label of the run
--   profile  VARCHAR  as in _bridge_profiles
--   is_cc    BOOLEAN  confidential computing is taken to be on
--   basis    VARCHAR  told: the GPU's name and mode were recorded; behaviour:
--                     the mode is told from copies that wait or from what
--                     launches take, the GPU is as recorded, or told from what
--                     launches take, or taken to be a B300; assumed: none of it
-- caveats:  devtools counts as on: the bridge is encrypted in it. Launches tell
--           by their fastest fifth, less what the probes add, of 20 and more;
--           with CC where they are nearer, by ratio, to the least published
--           with CC than to that without, unless copies or NVML say otherwise.
CREATE VIEW _run_profiles AS
WITH waited AS (
  SELECT run, bool_or(waits) AS waits
  FROM _copy_waits
  WHERE is_async
    AND copy_kind IN ('h2d', 'd2h')
    AND host_memory <> 'pageable'
    AND waits IS NOT NULL
  GROUP BY run
),

launched AS (
  SELECT
    calls.run,
    quantile_cont(calls.dur_ns - coalesce(probes.probe_ns, 0), 0.2) AS toll_ns
  FROM cuda_api AS calls
  LEFT JOIN _probe_costs AS probes
    ON calls.run = probes.run
    AND calls."class" = probes."class"
    AND calls.layer = probes.layer
  WHERE calls.depth = 0
    AND calls."class" IN ('launch', 'graph')
    AND calls.dur_ns IS NOT NULL
  GROUP BY calls.run
  HAVING count(*) >= 20
),

published AS (
  SELECT
    max(toll_ns) FILTER (WHERE profile = 'b300') AS without_ns,
    max(toll_ns) FILTER (WHERE profile = 'h200-cc') AS h200_ns,
    max(toll_ns) FILTER (WHERE profile = 'b300-cc') AS b300_ns
  FROM _bridge_profiles
  WHERE "class" = 'launch'
),

told AS (
  SELECT
    runs.run,
    CASE
      WHEN regexp_matches(runs.gpu_name, 'H[12]00|GH200|H20|H800') THEN 'h200'
      WHEN runs.gpu_name IS NULL
        AND launched.toll_ns < sqrt(published.h200_ns * published.b300_ns)
        THEN 'h200'
      ELSE 'b300'
    END AS cc_family,
    CASE
      WHEN regexp_matches(runs.gpu_name, 'H[12]00|GH200|H20|H800') THEN 'h200'
      ELSE 'b300'
    END AS family,
    CASE
      WHEN runs.gpu_cc IN ('on', 'devtools') THEN TRUE
      WHEN runs.gpu_cc = 'off' THEN FALSE
    END AS gpu_cc,
    waited.waits,
    launched.toll_ns > sqrt(published.without_ns * published.h200_ns) AS slow,
    coalesce(runs.tee IN ('tdx', 'sev-snp'), FALSE) AS is_tee,
    runs.gpu_name IS NOT NULL AS has_gpu
  FROM runs
  CROSS JOIN published
  LEFT JOIN waited
    ON runs.run = waited.run
  LEFT JOIN launched
    ON runs.run = launched.run
)

SELECT
  run,
  CASE
    WHEN coalesce(gpu_cc, waits, slow, is_tee) THEN cc_family || '-cc'
    ELSE family
  END AS profile,
  coalesce(gpu_cc, waits, slow, is_tee) AS is_cc,
  CASE
    WHEN gpu_cc IS NOT NULL AND has_gpu THEN 'told'
    WHEN coalesce(gpu_cc, waits, slow) IS NOT NULL THEN 'behaviour'
    ELSE 'assumed'
  END AS basis
FROM told;
