-- Waits for the batch lock, an advisory lock that only this function uses. The transaction's end releases it.
--
-- After the timeout the transaction continues without the lock. The function's SET clause restores `lock_timeout`.
CREATE OR REPLACE FUNCTION orders_await_turn(milliseconds int) RETURNS void
LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
  PERFORM set_config('lock_timeout', milliseconds::text, true);
  PERFORM pg_advisory_xact_lock(x'7475726E'::int, 0);
EXCEPTION WHEN lock_not_available THEN
  NULL;
END
$$
