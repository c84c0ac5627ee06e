-- Inserts events, and a delivery of each for every subscription of its broker to its type. Returns the number of
-- deliveries. Null inserts nothing. Its plans always use an index, as in orders/matching/sql/read_market.sql.
CREATE OR REPLACE FUNCTION webhooks_publish(events json) RETURNS int LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
  due int := 0;
BEGIN
  IF events IS NOT NULL THEN
    WITH event AS (
      INSERT INTO webhooks_event (id, broker_id, sequence, type, occurred_at, body)
      SELECT uuidv7(), broker_id, sequence, type, occurred_at, body
      FROM json_to_recordset(events)
        AS row(broker_id text, sequence bigint, type text, occurred_at timestamptz, body text)
      RETURNING id, broker_id, sequence, type
    )
    INSERT INTO webhooks_delivery (id, event_id, subscription_id)
    SELECT uuidv7(), event.id, subscription.id
    FROM event JOIN webhooks_subscription subscription
      ON subscription.broker_id = event.broker_id AND subscription.event_type = event.type
         AND subscription.deleted_at IS NULL
    ORDER BY event.broker_id, event.sequence;
    GET DIAGNOSTICS due = ROW_COUNT;
  END IF;
  RETURN due;
END
$$
