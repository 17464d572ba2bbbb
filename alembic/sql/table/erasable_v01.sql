-- {{table}}: rows never change, and only an erasure deletes them, also for the owner and in replica mode (contract section 18).
-- Both triggers are needed: see table/append_only.
CREATE TRIGGER guard_row
BEFORE UPDATE OR DELETE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION os_core.guard_erasable('{{table}}');

CREATE TRIGGER guard_statement
BEFORE UPDATE OR DELETE OR TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION os_core.guard_erasable('{{table}}');

ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER guard_row;
ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER guard_statement;
