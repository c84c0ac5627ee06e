-- Appends entries to the audit log's hash chain. Returns their number, or null for null.
--
-- The head is locked until the end of the caller's transaction, so this must be its last statement: the lock order is
-- instruments, brokers, head. SECURITY DEFINER, so that the caller needs no write access to the tables. STRICT, so that
-- it is not executed without entries, as for every ordinary order.
CREATE OR REPLACE FUNCTION exchange_record_audit(entries json) RETURNS int LANGUAGE plpgsql
STRICT SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  entry exchange_auditentry;
  head exchange_audithead;
  written int := 0;
BEGIN
  SELECT * INTO head FROM exchange_audithead FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'The audit has lost its head: nothing more goes on record until it is restored.';
  END IF;
  FOR entry IN SELECT * FROM json_populate_recordset(NULL::exchange_auditentry, entries) LOOP
    head.number := head.number + 1;
    entry.number := head.number;
    entry.id := uuidv7();
    entry.at := clock_timestamp();
    head.hash := exchange_audit_hash(head.hash, entry);
    entry.hash := head.hash;
    INSERT INTO exchange_auditentry SELECT entry.*;
    written := written + 1;
  END LOOP;
  UPDATE exchange_audithead SET number = head.number, hash = head.hash;
  RETURN written;
END
$$
