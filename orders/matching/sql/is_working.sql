-- True if an order of this status may still trade: `WORKING` in `orders/enums.py`.
--
-- The planner puts the body in place of the call, so that partial indexes on these statuses serve.
CREATE OR REPLACE FUNCTION orders_is_working(status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN status IN ('pending', 'partially_filled');
