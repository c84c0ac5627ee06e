-- Hash of an audit entry: covers its content and the preceding hash.
--
-- Independent of the session's settings. A JSON array is used because different rows never produce the same one.
CREATE OR REPLACE FUNCTION exchange_audit_hash(previous bytea, entry exchange_auditentry) RETURNS bytea
LANGUAGE sql STABLE
RETURN sha256(previous || convert_to(jsonb_build_array(
  (entry).number, (entry).id, (entry).at AT TIME ZONE 'UTC', (entry).actor_kind, (entry).actor, (entry).address,
  (entry).request_id, (entry).action, (entry).subject, (entry).reason, (entry).before, (entry).after)::text, 'UTF8'));
