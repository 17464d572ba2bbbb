-- {{table}}: append-only, also for the owner and in replica mode (contract section 11).
-- Both triggers are needed: logical replication fires row triggers only; TRUNCATE, and a statement that matches no row, fire
-- statement triggers only.
CREATE TRIGGER reject_mutation_row
BEFORE UPDATE OR DELETE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION os_core.reject_mutation('{{table}}');

CREATE TRIGGER reject_mutation_statement
BEFORE UPDATE OR DELETE OR TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION os_core.reject_mutation('{{table}}');

ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER reject_mutation_row;
ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER reject_mutation_statement;
