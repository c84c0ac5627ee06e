-- Trigger function that rejects UPDATE, DELETE and TRUNCATE of the audit log.
CREATE OR REPLACE FUNCTION exchange_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'The audit only grows: % of % is refused.', TG_OP, TG_TABLE_NAME
    USING ERRCODE = 'insufficient_privilege';
END
$$
