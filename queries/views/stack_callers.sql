-- stack_callers: who made a call, in the few frames that tell most.
-- requires: stacks
-- grain:    one row per stack with a frame that has a name
-- columns:
--   run       VARCHAR    label of the run
--   stack_id  BIGINT     as in stacks
--   callers   VARCHAR[]  three frames at most, innermost first, as `function
--                        (folder/file.py:12)`: the innermost Python ones; of a
--                        stack without any, the innermost native ones that
--                        have a name
-- caveats:  names are the traced program's own words.
CREATE VIEW stack_callers AS
WITH frames AS (
  SELECT
    run, stack_id,
    unnest(frames) AS frame,
    generate_subscripts(frames, 1) AS place
  FROM stacks
),

named AS (
  SELECT
    run, stack_id, place, frame,
    frame['kind'] = 'python' AS is_python,
    bool_or(frame['kind'] = 'python') OVER (PARTITION BY run, stack_id)
      AS has_python
  FROM frames
  WHERE frame['kind'] = 'python'
    OR (
      frame['kind'] = 'native'
      AND frame['module'] IS NOT NULL
      AND NOT regexp_matches(frame['function'], '^(\[|0x|.*\+0x)')
    )
),

ranked AS (
  SELECT
    run, stack_id, place, frame,
    row_number() OVER (PARTITION BY run, stack_id ORDER BY place) AS turn
  FROM named
  WHERE is_python = has_python
)

SELECT
  run, stack_id,
  list(
    concat(
      frame['function'],
      ' (',
      regexp_extract(coalesce(frame['file'], frame['module']), '[^/]*/?[^/]*$'),
      ':' || frame['line'],
      ')'
    )
    ORDER BY place
  ) AS callers
FROM ranked
WHERE turn <= 3
GROUP BY run, stack_id;
