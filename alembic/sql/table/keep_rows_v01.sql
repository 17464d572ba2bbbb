-- {{table}}: its guard, for everyone, the owner and replica mode included. Logical apply fires row triggers only; TRUNCATE and a DELETE
-- that meets no row fire statement triggers only: hence both.
CREATE TRIGGER guard_row
BEFORE UPDATE OR DELETE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION {{guard}}();

CREATE TRIGGER guard_statement
BEFORE DELETE OR TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{guard}}();

ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER guard_row;
ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER guard_statement;
