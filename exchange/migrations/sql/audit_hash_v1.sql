-- The hash of an audit entry, which covers its content and the hash before it.
--
-- Independent of the session's settings. A JSON array, because no two different rows have the same one.
CREATE OR REPLACE FUNCTION exchange_audit_hash(previous bytea, entry exchange_auditentry) RETURNS bytea
LANGUAGE sql STABLE
RETURN sha256(previous || convert_to(jsonb_build_array(
  (entry).number, (entry).id, (entry).at AT TIME ZONE 'UTC', (entry).actor_kind, (entry).actor, (entry).address,
  (entry).request_id, (entry).action, (entry).subject, (entry).reason, (entry).before, (entry).after)::text, 'UTF8'));
