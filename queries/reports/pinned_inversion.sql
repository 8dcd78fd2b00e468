-- pinned_inversion: are copies with pinned host memory slower than with
--           pageable memory?
-- requires: runs, crossings, crossing_costs, bridge_model
-- grain:    one row per run and direction, h2d and d2h
-- columns:
--   run                   VARCHAR  label of the run
--   answer                VARCHAR  yes, no or unknown
--   evidence              VARCHAR  what decided, in a sentence
--   copy_kind             VARCHAR  h2d or d2h
--   compared_with         VARCHAR  run: both memories are in the run;
--                                  published: the other one is a published
--                                  figure; NULL: not compared
--   pinned_copies         BIGINT   undisturbed pinned copies that the
--                                  comparison takes
--   pageable_copies       BIGINT   likewise, pageable
--   pinned_toll_ns        BIGINT   the host's time in a pinned copy whatever
--                                  its size, by the bridge model, ns
--   pageable_toll_ns      BIGINT   likewise, pageable
--   pinned_ns_per_byte    DOUBLE   what a byte adds to it, ns; 0 where the copy
--                                  does not wait for its bytes
--   pageable_ns_per_byte  DOUBLE   likewise, pageable
--   size_bytes            BIGINT   size they are compared at; NULL: not
--                                  compared
--   pinned_ns             BIGINT   the host's time in a pinned copy of that
--                                  size, ns; NULL: not compared
--   pageable_ns           BIGINT   likewise, pageable
--   ratio                 DOUBLE   pinned_ns over pageable_ns; NULL: not
--                                  compared
-- params:
--   margin  DOUBLE = 1.1  ratio from which pinned counts as slower; against a
--                         published figure 1.5 at least
-- caveats:  compared are the medians of 5 or more copies of each memory, by the
--           same function and of the same size within a tenth, the largest
--           there is; where there are none, what the bridge model makes of 1
--           MiB, or of 4 KiB where the run does not show what a byte costs. The
--           published figures are a ratio of 0.34 at most without CC (55.7
--           against 19.2 GB/s, and less where the call does not wait) and of
--           1.35 with CC (11.1 against 15.0 GB/s; Tinfoil, 2026-06-23), so that
--           with CC the ratio lies on the other side of 1. Where only one of
--           the memories is in the run, the other is taken from the profile
--           that bridge_model names, if the GPU's mode was recorded or copies
--           show it, and the evidence says so. What an asynchronous pinned copy
--           takes of the device's time is not seen from the host and not
--           compared. Of several functions one that was used with both memories
--           is taken, then asynchronous ones, then the one with most copies.
WITH largest AS (
  SELECT run, api, copy_kind, host_memory, max(size_bytes) AS size_bytes
  FROM crossings
  WHERE "class" = 'copy'
    AND dur_ns IS NOT NULL
    AND coalesce(result, 0) = 0
  GROUP BY run, api, copy_kind, host_memory
),

sides AS (
  SELECT
    model.run, model.copy_kind, model.host_memory, model.api, model.n,
    model.toll_ns, model.latency_ns, model.ns_per_byte, model.mode,
    model.profile, model.profile_basis,
    coalesce(contains(model.api, 'Async'), FALSE) AS is_async,
    model.source = 'run' AS is_seen,
    model.source = 'run'
    AND (model.mode = 'async' OR model.bandwidth_source = 'run')
    AND coalesce(largest.size_bytes, 0) >= 1048576 AS is_seen_per_byte
  FROM bridge_model AS model
  LEFT JOIN largest
    ON model.run = largest.run
    AND model.api = largest.api
    AND model.copy_kind = largest.copy_kind
    AND model.host_memory = largest.host_memory
  WHERE model."class" = 'copy'
    AND model.copy_kind IN ('h2d', 'd2h')
    AND model.host_memory IN ('pinned', 'pageable')
),

pairs AS (
  SELECT
    pinned.run, pinned.copy_kind, pinned.profile, pinned.profile_basis,
    pinned.n AS pinned_copies,
    pageable.n AS pageable_copies,
    pinned.is_seen AS pinned_is_seen,
    pageable.is_seen AS pageable_is_seen,
    pinned.ns_per_byte AS pinned_ns_per_byte,
    pageable.ns_per_byte AS pageable_ns_per_byte,
    -- A published figure is of asynchronous copies: a copy that waits by its
    -- nature waits for the device's part as well.
    pinned.toll_ns + CASE
      WHEN NOT pinned.is_seen AND pageable.is_seen AND NOT pageable.is_async
        AND pinned.mode <> 'host_synchronous'
        THEN pinned.latency_ns
      ELSE 0
    END AS pinned_toll_ns,
    pageable.toll_ns + CASE
      WHEN NOT pageable.is_seen AND pinned.is_seen AND NOT pinned.is_async
        AND pageable.mode <> 'host_synchronous'
        THEN pageable.latency_ns
      ELSE 0
    END AS pageable_toll_ns,
    CASE
      WHEN pinned.is_seen AND pageable.is_seen
        THEN pinned.is_seen_per_byte AND pageable.is_seen_per_byte
      ELSE pinned.is_seen_per_byte OR pageable.is_seen_per_byte
    END AS is_seen_per_byte
  FROM sides AS pinned
  INNER JOIN sides AS pageable
    ON pinned.run = pageable.run
    AND pinned.copy_kind = pageable.copy_kind
  WHERE pinned.host_memory = 'pinned'
    AND pageable.host_memory = 'pageable'
  QUALIFY row_number() OVER (
    PARTITION BY pinned.run, pinned.copy_kind
    ORDER BY
      pinned.is_seen AND pageable.is_seen DESC,
      pinned.api IS NOT DISTINCT FROM pageable.api DESC,
      pinned.is_async OR pageable.is_async DESC,
      pinned.n + pageable.n DESC, pinned.api, pageable.api
  ) = 1
),

failed AS (
  SELECT run, pid, tid, ts_ns, api
  FROM crossings
  WHERE "class" = 'copy'
    AND dur_ns IS NOT NULL
    AND result <> 0
),

-- Copies that waited for nothing but themselves.
copies AS (
  SELECT
    calls.run, calls.copy_kind, calls.host_memory, calls.api,
    calls.size_bytes,
    floor(log2(calls.size_bytes)) AS size_class,
    calls.dur_ns - calls.runnable_ns - calls.unattributed_ns AS net_ns
  FROM crossing_costs AS calls
  INNER JOIN bridge_model AS model
    ON calls.run = model.run
    AND model."class" = 'copy'
    AND calls.api = model.api
    AND calls.copy_kind = model.copy_kind
    AND calls.host_memory = model.host_memory
  WHERE calls."class" = 'copy'
    AND calls.copy_kind IN ('h2d', 'd2h')
    AND calls.host_memory IN ('pinned', 'pageable')
    AND calls.size_bytes > 0
    AND calls.dur_ns IS NOT NULL
    AND (calls.stream_was_idle OR NOT model.blocks)
    AND NOT EXISTS (
      SELECT 1
      FROM failed
      WHERE failed.run = calls.run
        AND failed.pid = calls.pid
        AND failed.tid = calls.tid
        AND failed.ts_ns = calls.ts_ns
        AND failed.api = calls.api
    )
),

sized AS (
  SELECT
    run, copy_kind, host_memory, api, size_class,
    count(*) AS n,
    avg(size_bytes) AS size_bytes,
    quantile_disc(net_ns, 0.5) AS p50_ns
  FROM copies
  GROUP BY run, copy_kind, host_memory, api, size_class
  HAVING count(*) >= 5
),

-- The largest size that both memories were used with.
matched AS (
  SELECT
    pinned.run, pinned.copy_kind, pinned.size_bytes,
    pinned.n AS pinned_copies,
    pageable.n AS pageable_copies,
    pinned.p50_ns AS pinned_ns,
    pageable.p50_ns * pinned.size_bytes / pageable.size_bytes AS pageable_ns
  FROM sized AS pinned
  INNER JOIN sized AS pageable
    ON pinned.run = pageable.run
    AND pinned.copy_kind = pageable.copy_kind
    AND pinned.api = pageable.api
    AND pinned.size_class = pageable.size_class
  WHERE pinned.host_memory = 'pinned'
    AND pageable.host_memory = 'pageable'
    AND pinned.size_bytes BETWEEN
    0.9 * pageable.size_bytes AND 1.1 * pageable.size_bytes
  QUALIFY row_number() OVER (
    PARTITION BY pinned.run, pinned.copy_kind
    ORDER BY pinned.size_class DESC, pinned.n + pageable.n DESC, pinned.api
  ) = 1
),

sources AS (
  SELECT
    pairs.run, pairs.copy_kind, pairs.profile, pairs.profile_basis,
    pairs.pinned_toll_ns, pairs.pageable_toll_ns, pairs.pinned_ns_per_byte,
    pairs.pageable_ns_per_byte, pairs.is_seen_per_byte,
    coalesce(matched.pinned_copies, pairs.pinned_copies) AS pinned_copies,
    coalesce(matched.pageable_copies, pairs.pageable_copies)
      AS pageable_copies,
    pairs.pinned_is_seen OR matched.run IS NOT NULL AS pinned_is_seen,
    pairs.pageable_is_seen OR matched.run IS NOT NULL AS pageable_is_seen,
    matched.size_bytes AS matched_bytes,
    matched.pinned_ns AS matched_pinned_ns,
    matched.pageable_ns AS matched_pageable_ns
  FROM pairs
  LEFT JOIN matched
    ON pairs.run = matched.run
    AND pairs.copy_kind = matched.copy_kind
),

compared AS (
  SELECT
    run, copy_kind, profile, pinned_copies, pageable_copies,
    pinned_is_seen, pageable_is_seen, pinned_toll_ns, pageable_toll_ns,
    pinned_ns_per_byte, pageable_ns_per_byte,
    CASE
      WHEN pinned_is_seen AND pageable_is_seen THEN 'run'
      WHEN profile_basis = 'assumed' THEN NULL
      WHEN pinned_is_seen OR pageable_is_seen THEN 'published'
    END AS compared_with,
    CASE
      WHEN compared_with IS NULL THEN NULL
      WHEN matched_bytes IS NOT NULL THEN CAST(matched_bytes AS BIGINT)
      WHEN is_seen_per_byte THEN 1048576
      ELSE 4096
    END AS size_bytes,
    coalesce(
      matched_pinned_ns, pinned_toll_ns + size_bytes * pinned_ns_per_byte
    ) AS pinned_ns,
    coalesce(
      matched_pageable_ns,
      pageable_toll_ns + size_bytes * pageable_ns_per_byte
    ) AS pageable_ns,
    pinned_ns / pageable_ns AS ratio,
    CASE
      WHEN compared_with = 'published' THEN greatest($margin, 1.5)
      ELSE $margin
    END AS least_ratio
  FROM sources
),

-- What was seen with both memories says most, then large copies.
deciding AS (
  SELECT
    run, copy_kind, profile, pinned_is_seen, compared_with, size_bytes,
    pinned_ns, pageable_ns, ratio, least_ratio
  FROM compared
  WHERE compared_with IS NOT NULL
  QUALIFY row_number() OVER (
    PARTITION BY run
    ORDER BY
      compared_with = 'run' DESC, size_bytes DESC, ratio DESC, copy_kind DESC
  ) = 1
),

seen AS (
  SELECT run, bool_or(pinned_is_seen OR pageable_is_seen) AS any_seen
  FROM compared
  GROUP BY run
),

verdicts AS (
  SELECT
    runs.run,
    CASE
      WHEN deciding.run IS NULL THEN 'unknown'
      WHEN deciding.ratio >= deciding.least_ratio THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN deciding.run IS NULL AND seen.any_seen
        THEN 'copies with pinned and with pageable memory are needed: one of '
          || 'them alone was recorded, and neither the GPU''s mode nor the '
          || 'copies tell whether CC is on'
      WHEN deciding.run IS NULL
        THEN 'at least 5 copies with pinned and 5 with pageable memory that '
          || 'waited for no other work are needed in one direction'
      ELSE format(
        'a pinned {} copy of {} takes the host {:,.1f} us{}, {:.2f} times '
        'what a pageable one takes ({:,.1f} us{})',
        deciding.copy_kind,
        format_bytes(deciding.size_bytes),
        deciding.pinned_ns / 1e3,
        if(
          deciding.pinned_is_seen, '',
          format(' (published, {})', deciding.profile)
        ),
        deciding.ratio,
        deciding.pageable_ns / 1e3,
        if(
          deciding.compared_with = 'run' OR NOT deciding.pinned_is_seen, '',
          format(', published, {}', deciding.profile)
        )
      )
    END AS evidence
  FROM runs
  LEFT JOIN seen
    ON runs.run = seen.run
  LEFT JOIN deciding
    ON runs.run = deciding.run
)

SELECT
  verdicts.run,
  verdicts.answer,
  verdicts.evidence,
  compared.copy_kind,
  compared.compared_with,
  compared.pinned_copies,
  compared.pageable_copies,
  CAST(round(compared.pinned_toll_ns) AS BIGINT) AS pinned_toll_ns,
  CAST(round(compared.pageable_toll_ns) AS BIGINT) AS pageable_toll_ns,
  compared.pinned_ns_per_byte,
  compared.pageable_ns_per_byte,
  CAST(compared.size_bytes AS BIGINT) AS size_bytes,
  CAST(round(compared.pinned_ns) AS BIGINT) AS pinned_ns,
  CAST(round(compared.pageable_ns) AS BIGINT) AS pageable_ns,
  compared.ratio
FROM verdicts
LEFT JOIN compared
  ON verdicts.run = compared.run
ORDER BY verdicts.run, compared.copy_kind DESC;
