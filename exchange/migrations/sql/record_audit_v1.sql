-- Writes entries. Returns their number; null writes none.
CREATE FUNCTION exchange_record_audit(entries json) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  written int := 0;
BEGIN
  IF entries IS NOT NULL THEN
    INSERT INTO exchange_auditentry (
      id, at, actor_kind, actor, address, request_id, action, subject, reason, before, after)
    SELECT uuidv7(), clock_timestamp(), actor_kind, actor, address, request_id, action, subject, reason, before, after
    FROM json_to_recordset(entries) AS row(
      actor_kind text, actor text, address text, request_id text, action text, subject text, reason text,
      before jsonb, after jsonb);
    GET DIAGNOSTICS written = ROW_COUNT;
  END IF;
  RETURN written;
END
$$
