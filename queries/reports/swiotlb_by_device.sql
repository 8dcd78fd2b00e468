-- swiotlb_by_device: what devices moved through the kernel's bounce buffers.
-- requires: swiotlb
-- grain:    one row per run, device and direction, most bytes mapped first
-- columns:
--   run            VARCHAR  label of the run
--   device         VARCHAR  device name; NULL: not learned
--   direction      VARCHAR  of the mapping, or of the copy: to_device,
--                           from_device or bidirectional; NULL: unknown
--   maps           BIGINT   mappings of that direction
--   mapped_bytes   BIGINT   bytes they cover: what the device was to move
--   bounces        BIGINT   copies in that direction
--   bounced_bytes  BIGINT   bytes copied
--   map_ns         BIGINT   sum of the lengths of the maps, with the copies
--                           they make, ns; NULL: unknown
--   bounce_ns      BIGINT   sum of the lengths of the copies, ns; NULL: unknown
--   max_ns         BIGINT   longest map or copy, ns; NULL: unknown
--   full           BIGINT   mappings refused because the pool had no room
--   over_size      BIGINT   mappings refused because they exceed 256 KiB, the
--                           most one can have: a bigger pool does not help
-- caveats:  mapped and bounced bytes are never to be added: a read is mapped
--           once and copied twice, to the device when it is mapped and from it
--           when it ends. By the tracepoint alone, refused mappings count as
--           maps, and nothing is known of copies and directions.
SELECT
  run,
  device,
  direction,
  count(*) FILTER (op = 'map') AS maps,
  CAST(coalesce(sum(size_bytes) FILTER (op = 'map'), 0) AS BIGINT)
    AS mapped_bytes,
  count(*) FILTER (op = 'bounce') AS bounces,
  CAST(coalesce(sum(size_bytes) FILTER (op = 'bounce'), 0) AS BIGINT)
    AS bounced_bytes,
  CAST(sum(dur_ns) FILTER (op = 'map') AS BIGINT) AS map_ns,
  CAST(sum(dur_ns) FILTER (op = 'bounce') AS BIGINT) AS bounce_ns,
  max(dur_ns) FILTER (op IN ('map', 'bounce')) AS max_ns,
  count(*) FILTER (op = 'full' AND size_bytes <= 262144) AS "full",
  count(*) FILTER (op = 'full' AND size_bytes > 262144) AS over_size
FROM swiotlb
GROUP BY run, device, direction
ORDER BY run, mapped_bytes DESC, bounced_bytes DESC, device, direction;
