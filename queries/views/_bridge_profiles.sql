-- _bridge_profiles: published costs of crossing the bridge, for what a run does
--           not show itself.
-- requires:
-- grain:    one row per profile, class, kind of copy and host memory
-- columns:
--   profile      VARCHAR  b300, b300-cc, h200 or h200-cc
--   class        VARCHAR  class of call, as in cuda_api; query: a sync that
--                         does not wait
--   copy_kind    VARCHAR  h2d, d2h, d2d or p2p; NULL: not a copy
--   host_memory  VARCHAR  pinned, pageable or managed; NULL: no host memory
--   toll_ns      DOUBLE   the host's time, whatever the size, ns
--   gb_per_s     DOUBLE   bandwidth, 1e9 bytes per second; NULL: moves nothing
--   latency_ns   DOUBLE   from the host's part until the device starts, ns
--   mode         VARCHAR  async, staged or host_synchronous: whether the call
--                         returns once submitted, once its source is read, or
--                         once the copy and all before it are done; NULL: no
--                         copy
--   source       VARCHAR  C1 (Tinfoil, 2026-06-23), C4 (arXiv 2606.23969), C10
--                         (arXiv 2608.26575), vllm#52226, CUDA (its manual), or
--                         assumed
-- caveats:  figures of other machines, the same as those of the profiles in
--           examples/simcuda/profiles, where each names its source.
CREATE VIEW _bridge_profiles AS
SELECT
  CAST(profile AS VARCHAR) AS profile,
  CAST("class" AS VARCHAR) AS "class",
  CAST(copy_kind AS VARCHAR) AS copy_kind,
  CAST(host_memory AS VARCHAR) AS host_memory,
  CAST(toll_ns AS DOUBLE) AS toll_ns,
  CAST(gb_per_s AS DOUBLE) AS gb_per_s,
  CAST(latency_ns AS DOUBLE) AS latency_ns,
  CAST(mode AS VARCHAR) AS mode,
  CAST(source AS VARCHAR) AS source
FROM (
  VALUES
    ('b300', 'launch', NULL, NULL, 7400, NULL, 2980, NULL, 'C1'),
    ('b300', 'graph', NULL, NULL, 7400, NULL, 2980, NULL, 'assumed'),
    ('b300', 'collective', NULL, NULL, 7400, 700, 15000, NULL, 'assumed'),
    ('b300', 'sync', NULL, NULL, 1620, NULL, 0, NULL, 'C10'),
    ('b300', 'query', NULL, NULL, 500, NULL, 0, NULL, 'assumed'),
    ('b300', 'event', NULL, NULL, 1000, NULL, 0, NULL, 'assumed'),
    ('b300', 'alloc', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('b300', 'alloc', NULL, 'pinned', 30000, NULL, 0, NULL, 'assumed'),
    ('b300', 'free', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('b300', 'memset', NULL, NULL, 7400, 4000, 2980, NULL, 'assumed'),
    ('b300', 'copy', 'h2d', 'pinned', 3450, 55.7, 2050, 'async', 'C1'),
    ('b300', 'copy', 'h2d', 'pageable', 3450, 19.2, 2050, 'staged', 'C1'),
    ('b300', 'copy', 'h2d', 'managed', 3450, 55.7, 2050, 'async', 'assumed'),
    ('b300', 'copy', 'd2h', 'pinned', 3450, 55.7, 2050, 'async', 'assumed'),
    ('b300', 'copy', 'd2h', 'pageable', 3450, 19.2, 2050, 'host_synchronous',
      'assumed'),
    ('b300', 'copy', 'd2h', 'managed', 3450, 55.7, 2050, 'async', 'assumed'),
    ('b300', 'copy', 'd2d', NULL, 3450, 4000, 1500, 'async', 'assumed'),
    ('b300', 'copy', 'p2p', NULL, 3450, 700, 1500, 'async', 'assumed'),
    ('b300-cc', 'launch', NULL, NULL, 26000, NULL, 25330, NULL, 'C1'),
    ('b300-cc', 'graph', NULL, NULL, 26000, NULL, 25330, NULL, 'assumed'),
    ('b300-cc', 'collective', NULL, NULL, 26000, 623, 27500, NULL, 'C1'),
    ('b300-cc', 'sync', NULL, NULL, 1670, NULL, 0, NULL, 'C10'),
    ('b300-cc', 'query', NULL, NULL, 500, NULL, 0, NULL, 'assumed'),
    ('b300-cc', 'event', NULL, NULL, 1000, NULL, 0, NULL, 'assumed'),
    ('b300-cc', 'alloc', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('b300-cc', 'alloc', NULL, 'pinned', 30000, NULL, 0, NULL, 'assumed'),
    ('b300-cc', 'free', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('b300-cc', 'memset', NULL, NULL, 26000, 4000, 25330, NULL, 'assumed'),
    ('b300-cc', 'copy', 'h2d', 'pinned', 3450, 11.1, 6550,
      'host_synchronous', 'C1'),
    ('b300-cc', 'copy', 'h2d', 'pageable', 3450, 15, 6550, 'staged', 'C1'),
    ('b300-cc', 'copy', 'h2d', 'managed', 3450, 11.1, 6550,
      'host_synchronous', 'assumed'),
    ('b300-cc', 'copy', 'd2h', 'pinned', 3450, 11.1, 6550,
      'host_synchronous', 'assumed'),
    ('b300-cc', 'copy', 'd2h', 'pageable', 3450, 15, 6550,
      'host_synchronous', 'assumed'),
    ('b300-cc', 'copy', 'd2h', 'managed', 3450, 11.1, 6550,
      'host_synchronous', 'assumed'),
    ('b300-cc', 'copy', 'd2d', NULL, 3450, 4000, 1500, 'async', 'assumed'),
    ('b300-cc', 'copy', 'p2p', NULL, 3450, 623, 14000, 'async', 'C1'),
    ('h200', 'launch', NULL, NULL, 7400, NULL, 2980, NULL, 'assumed'),
    ('h200', 'graph', NULL, NULL, 7400, NULL, 2980, NULL, 'assumed'),
    ('h200', 'collective', NULL, NULL, 7400, 350, 15000, NULL, 'assumed'),
    ('h200', 'sync', NULL, NULL, 1620, NULL, 0, NULL, 'C10'),
    ('h200', 'query', NULL, NULL, 500, NULL, 0, NULL, 'assumed'),
    ('h200', 'event', NULL, NULL, 1000, NULL, 0, NULL, 'assumed'),
    ('h200', 'alloc', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('h200', 'alloc', NULL, 'pinned', 30000, NULL, 0, NULL, 'assumed'),
    ('h200', 'free', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('h200', 'memset', NULL, NULL, 7400, 2400, 2980, NULL, 'assumed'),
    ('h200', 'copy', 'h2d', 'pinned', 3450, 55.7, 2050, 'async', 'assumed'),
    ('h200', 'copy', 'h2d', 'pageable', 3450, 19.2, 2050, 'staged', 'assumed'),
    ('h200', 'copy', 'h2d', 'managed', 3450, 55.7, 2050, 'async', 'assumed'),
    ('h200', 'copy', 'd2h', 'pinned', 3450, 55.7, 2050, 'async', 'assumed'),
    ('h200', 'copy', 'd2h', 'pageable', 3450, 19.2, 2050, 'host_synchronous',
      'assumed'),
    ('h200', 'copy', 'd2h', 'managed', 3450, 55.7, 2050, 'async', 'assumed'),
    ('h200', 'copy', 'd2d', NULL, 3450, 2400, 1500, 'async', 'assumed'),
    ('h200', 'copy', 'p2p', NULL, 3450, 350, 1500, 'async', 'assumed'),
    ('h200-cc', 'launch', NULL, NULL, 14800, NULL, 17930, NULL, 'C1'),
    ('h200-cc', 'graph', NULL, NULL, 14800, NULL, 17930, NULL, 'assumed'),
    ('h200-cc', 'collective', NULL, NULL, 14800, 329, 26000, NULL, 'C1'),
    ('h200-cc', 'sync', NULL, NULL, 1670, NULL, 0, NULL, 'C10'),
    ('h200-cc', 'query', NULL, NULL, 500, NULL, 0, NULL, 'assumed'),
    ('h200-cc', 'event', NULL, NULL, 1000, NULL, 0, NULL, 'assumed'),
    ('h200-cc', 'alloc', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('h200-cc', 'alloc', NULL, 'pinned', 30000, NULL, 0, NULL, 'assumed'),
    ('h200-cc', 'free', NULL, NULL, 2000, NULL, 0, NULL, 'assumed'),
    ('h200-cc', 'memset', NULL, NULL, 14800, 2400, 17930, NULL, 'assumed'),
    ('h200-cc', 'copy', 'h2d', 'pinned', 3450, 10, 6550, 'host_synchronous',
      'C1'),
    ('h200-cc', 'copy', 'h2d', 'pageable', 3450, 15, 6550, 'staged',
      'assumed'),
    ('h200-cc', 'copy', 'h2d', 'managed', 3450, 10, 6550, 'host_synchronous',
      'assumed'),
    ('h200-cc', 'copy', 'd2h', 'pinned', 3450, 10, 6550, 'host_synchronous',
      'assumed'),
    ('h200-cc', 'copy', 'd2h', 'pageable', 3450, 15, 6550,
      'host_synchronous', 'assumed'),
    ('h200-cc', 'copy', 'd2h', 'managed', 3450, 10, 6550, 'host_synchronous',
      'assumed'),
    ('h200-cc', 'copy', 'd2d', NULL, 3450, 2400, 1500, 'async', 'assumed'),
    ('h200-cc', 'copy', 'p2p', NULL, 3450, 329, 12500, 'async', 'C1')
) AS v(
  profile, "class", copy_kind, host_memory, toll_ns, gb_per_s, latency_ns,
  mode, source
);
