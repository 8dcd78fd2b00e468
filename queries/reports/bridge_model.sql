-- bridge_model: what does a crossing cost in this run, by kind of call?
-- requires: bridge_model
-- grain:    one row per run, class, api, kind of copy and host memory
-- columns:
--   run               VARCHAR  label of the run
--   class             VARCHAR  copy, launch, graph, sync, alloc or collective
--   api               VARCHAR  function name; NULL: the run has none of it
--   copy_kind         VARCHAR  as in cuda_api; NULL: not a copy
--   host_memory       VARCHAR  as in cuda_api; NULL: none, or does not matter
--   calls             BIGINT   such calls in the run
--   n                 BIGINT   of these, those that the figures come from; 0:
--                              they come from the profile
--   toll_ns           BIGINT   length whatever the size, ns, rounded
--   gb_per_s          DOUBLE   bandwidth, 1e9 bytes per second, to 3 digits
--                              after the point; NULL: no copy
--   blocks            BOOLEAN  returns only when the work before it on its
--                              stream is done; NULL: no copy
--   residual_p50_ns   BIGINT   median of how far calls are from the model, ns,
--                              rounded; NULL: from the profile
--   residual_p90_ns   BIGINT   as residual_p50_ns, the 90th percentile
--   confidence        VARCHAR  high, medium or low, as in the view
--   source            VARCHAR  of the toll: run or profile
--   bandwidth_source  VARCHAR  of the bandwidth: run or profile; NULL: no copy
--   profile           VARCHAR  whose published figures fill in what the run
--                              does not show
--   profile_basis     VARCHAR  why that profile: told, behaviour or assumed
-- params:
--   all_kinds  BOOLEAN = false  also kinds of which the run has no call
-- caveats:  as those of the view.
SELECT
  run,
  "class",
  api,
  copy_kind,
  host_memory,
  calls,
  n,
  CAST(round(toll_ns) AS BIGINT) AS toll_ns,
  round(gb_per_s, 3) AS gb_per_s,
  blocks,
  CAST(round(residual_p50_ns) AS BIGINT) AS residual_p50_ns,
  CAST(round(residual_p90_ns) AS BIGINT) AS residual_p90_ns,
  confidence,
  source,
  bandwidth_source,
  profile,
  profile_basis
FROM bridge_model
WHERE calls > 0 OR $all_kinds
ORDER BY run, "class", api NULLS LAST, copy_kind, host_memory;
