-- {{table}}: append-only guards for everyone, the owner and replica mode included (contract section 11).
-- Logical apply fires row triggers only; TRUNCATE and a statement that meets no row fire statement triggers only: hence both.
CREATE TRIGGER reject_mutation_row
BEFORE UPDATE OR DELETE ON {{table}}
FOR EACH ROW EXECUTE FUNCTION os_core.reject_mutation();

CREATE TRIGGER reject_mutation_statement
BEFORE UPDATE OR DELETE OR TRUNCATE ON {{table}}
FOR EACH STATEMENT EXECUTE FUNCTION os_core.reject_mutation();

ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER reject_mutation_row;
ALTER TABLE {{table}} ENABLE ALWAYS TRIGGER reject_mutation_statement;
