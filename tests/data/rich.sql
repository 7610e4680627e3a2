-- Everything that a dump, a merge or a comparison can get wrong.
CREATE ROLE "other Role";
GRANT "other Role" TO nina;
SET ROLE nina;
CREATE SCHEMA "Mixed Case";
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (x int, y text);
CREATE SEQUENCE free_sequence START 100 INCREMENT 7;
SELECT nextval('free_sequence'), nextval('free_sequence');
CREATE SEQUENCE never_used;
CREATE SEQUENCE falling INCREMENT -2 MAXVALUE 50 START 50;
SELECT nextval('falling');

CREATE TABLE people (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text UNIQUE NOT NULL,
    feeling mood DEFAULT 'ok',
    age positive,
    tags text[] DEFAULT '{}',
    facts jsonb,
    picture bytea,
    double_age int GENERATED ALWAYS AS (age * 2) STORED,
    where_to pair,
    born timestamptz DEFAULT '2020-02-29 12:00+00'
);
INSERT INTO people (email, feeling, age, tags, facts, picture, where_to)
SELECT format('p%s@example.org', g), (ARRAY['sad', 'ok', 'happy']::mood[])[1 + g % 3], g, ARRAY[g::text, NULL, 'a,"b\'],
       jsonb_build_object('n', g, 'nested', jsonb_build_array(1.50, null, 'ü\t"')), decode(md5(g::text), 'hex'), ROW(g, E'\t\n')::pair
  FROM generate_series(1, 500) g;

CREATE TABLE "Mixed Case"."Täble ""quoted"" $(touch PWN); 'x'" (
    "the Key" uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    "select" text,
    person int REFERENCES people ON DELETE CASCADE
);
INSERT INTO "Mixed Case"."Täble ""quoted"" $(touch PWN); 'x'" ("select", person)
SELECT E'日本語 🐘 \\. \\N line\nbreak ' || g, g FROM generate_series(1, 300) g;

CREATE TABLE vectors (id bigserial PRIMARY KEY, e vector(8) NOT NULL);
INSERT INTO vectors (e) SELECT ('[' || array_to_string(array(SELECT sin(g * h) FROM generate_series(1, 8) h), ',') || ']')::vector
  FROM generate_series(1, 400) g;
CREATE INDEX ON vectors USING hnsw (e vector_cosine_ops);

-- a cycle of foreign keys, and one to itself
CREATE TABLE hens (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE eggs (id int PRIMARY KEY, hen int REFERENCES hens DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE hens ADD FOREIGN KEY (egg) REFERENCES eggs;
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree);
BEGIN;
INSERT INTO eggs SELECT g, g FROM generate_series(1, 20) g;
INSERT INTO hens SELECT g, 21 - g FROM generate_series(1, 20) g;
COMMIT;
INSERT INTO tree SELECT g, nullif(g / 2, 0) FROM generate_series(1, 100) g;

CREATE TABLE events (at date NOT NULL, n int, PRIMARY KEY (at, n)) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO events SELECT date '2025-06-01' + g, g FROM generate_series(0, 400) g;

CREATE TABLE base (a int PRIMARY KEY);
CREATE TABLE derived (b text, PRIMARY KEY (a)) INHERITS (base);
INSERT INTO base VALUES (1), (2);
INSERT INTO derived VALUES (3, 'three');

CREATE TABLE keyless (word text, n numeric(30, 10));
INSERT INTO keyless VALUES ('twice', 1), ('twice', 1), ('once', 'NaN'), (NULL, NULL);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE "empty" (id serial PRIMARY KEY);
CREATE UNLOGGED TABLE fast (id int PRIMARY KEY, note text COLLATE "C");
INSERT INTO fast VALUES (1, 'x');

CREATE TABLE log (id serial PRIMARY KEY, what text);
CREATE FUNCTION "note It"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- \! touch PWN
    INSERT INTO public.log (what) VALUES (TG_OP || ' $(touch PWN)');
    RETURN NEW;
END $$;
CREATE TRIGGER noted AFTER INSERT ON hens FOR EACH ROW EXECUTE FUNCTION "note It"();
CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18 WITH CHECK OPTION;
CREATE MATERIALIZED VIEW counted AS SELECT feeling, count(*) FROM people GROUP BY 1;
CREATE INDEX ON people USING gin (tags);
CREATE INDEX late ON people (lower(email)) WHERE age > 400;
ALTER TABLE people ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON people USING (true);
CREATE PROCEDURE nothing() LANGUAGE sql AS 'SELECT 1';
CREATE RULE quiet AS ON DELETE TO keyless DO INSTEAD NOTHING;
GRANT SELECT ON people TO "other Role";
COMMENT ON TABLE people IS E'it''s "them"\nline two';
ALTER DEFAULT PRIVILEGES IN SCHEMA "Mixed Case" GRANT SELECT ON TABLES TO PUBLIC;
SELECT lo_from_bytea(424242, decode(repeat('00ff10', 5000), 'hex'));
RESET ROLE;
CREATE TABLE of_the_superuser (id int PRIMARY KEY);
INSERT INTO of_the_superuser VALUES (7);
CREATE SCHEMA tools;
CREATE EXTENSION pg_trgm SCHEMA tools;
ALTER DATABASE nina SET work_mem = '7MB';
ALTER DATABASE nina SET search_path = "$user", public, "Mixed Case";
ALTER ROLE nina IN DATABASE nina SET statement_timeout = '300s';
COMMENT ON DATABASE nina IS E'the developer''s "own"';
GRANT CREATE ON DATABASE nina TO "other Role" WITH GRANT OPTION;
REVOKE TEMPORARY ON DATABASE nina FROM PUBLIC;
