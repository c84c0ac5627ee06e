-- True if an order of this status may still trade: `WORKING` in `orders/enums.py`.
--
-- The planner inlines the function, so that queries use the partial indexes on these statuses.
CREATE OR REPLACE FUNCTION orders_is_working(status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN status IN ('pending', 'partially_filled');
