-- {{table}}: fires its guard, also for the owner and in replica mode.
-- Both triggers are needed: logical replication fires row triggers only; TRUNCATE, and a DELETE that matches no row, fire statement
-- triggers only.
CREATE TRIGGER guard_row
BEFORE UPDATE OR DELETE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION {{guard}}('{{table}}');

CREATE TRIGGER guard_statement
BEFORE DELETE OR TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION {{guard}}('{{table}}');

ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER guard_row;
ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER guard_statement;
