-- Waits until no other transaction has its turn, for a limited time; the turn ends with the transaction.
--
-- One advisory lock, and no other code uses its number. When the time is up, the transaction goes on without the lock;
-- it has not failed. The function's own SET restores `lock_timeout` at the end.
CREATE OR REPLACE FUNCTION orders_await_turn(milliseconds int) RETURNS void
LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
  PERFORM set_config('lock_timeout', milliseconds::text, true);
  PERFORM pg_advisory_xact_lock(x'7475726E'::int, 0);
EXCEPTION WHEN lock_not_available THEN
  NULL;
END
$$
