-- What the database's owner may make, to be run by a superuser who is not careful. Each trap logs CAUGHT if it is.
SET client_min_messages = warning;
SELECT current_database() AS database \gset

CREATE FUNCTION public.trapped(what text) RETURNS bool LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog AS $$
BEGIN
    -- autovacuum's session is the superuser's too: PostgreSQL itself looks after that one
    IF current_user IN ('postgres', 'nv_reader') OR session_user = 'postgres'
       AND (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'client backend'
    THEN
        RAISE LOG 'CAUGHT % as % in: %', what, current_user, current_query();
    END IF;
    RETURN true;
END $$;
CREATE FUNCTION public.trap(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$$ BEGIN PERFORM public.trapped('an expression'); RETURN n; END $$;

-- expressions: planning a query on a table evaluates what is constant in them
CREATE TYPE public.mine AS (a int, b text);
CREATE FUNCTION public.mine_as_text(mine) RETURNS text LANGUAGE plpgsql AS
$$ BEGIN PERFORM public.trapped('a cast'); RETURN ($1).b; END $$;
CREATE CAST (mine AS text) WITH FUNCTION public.mine_as_text(mine) AS IMPLICIT;
CREATE DOMAIN public.guarded AS int CHECK (public.trapped('a domain'));
CREATE TABLE public.traps (
    id int PRIMARY KEY DEFAULT public.trap(1),
    doubled int GENERATED ALWAYS AS (id * public.trap(2)) STORED,
    checked int CHECK (public.trapped('a check') AND checked >= public.trap(0)),
    guarded guarded,
    mine mine
);
INSERT INTO public.traps (id, checked, guarded, mine) SELECT g, g, g, ROW(g, 'x')::mine FROM generate_series(1, 100) g;
CREATE INDEX ON public.traps ((id + public.trap(1)));
CREATE INDEX ON public.traps (id) WHERE public.trap(1) = 1 AND id > public.trap(5);
CREATE UNIQUE INDEX ON public.traps ((id + public.trap(3)), checked);
CREATE STATISTICS public.figures ON (id + public.trap(1)), checked FROM public.traps;
CREATE TABLE public.children (id int REFERENCES public.traps, n int) PARTITION BY RANGE ((n + public.trap(1)));
CREATE TABLE public.child PARTITION OF public.children FOR VALUES FROM (0) TO (1000);
INSERT INTO public.children SELECT g, g FROM generate_series(1, 100) g;
ALTER TABLE public.traps ENABLE ROW LEVEL SECURITY;
CREATE POLICY watched ON public.traps USING (public.trapped('a policy'));
CREATE FUNCTION public.fired() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM public.trapped('a trigger'); RETURN NEW; END $$;
CREATE TRIGGER fired BEFORE INSERT OR UPDATE OR DELETE ON public.traps FOR EACH ROW EXECUTE FUNCTION public.fired();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.traps DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION public.fired();
CREATE VIEW public.seen AS SELECT id FROM public.traps WHERE public.trapped('a view');
CREATE MATERIALIZED VIEW public.kept AS SELECT id FROM public.traps WHERE public.trapped('a materialized view');
CREATE INDEX ON public.kept ((id + public.trap(1)));
CREATE RULE noted AS ON INSERT TO public.children DO ALSO SELECT public.trapped('a rule');

-- names: what our statements call without a schema, made again in public. nv.words has every word of the source;
-- format() and its like take anything, so that a version with exact types is the better match even where
-- pg_catalog comes first.
DO $make$
DECLARE
    f record;
    types text[] := '{text,name,oid,regclass,int4,int8,"char",bool}';
    names text[] := '{text,name,oid,regclass}';
    words text[] := current_setting('nv.words');
    body text;
BEGIN
    FOR f IN
        SELECT p.oid, proname, pg_get_function_identity_arguments(p.oid) AS args, prokind,
               CASE WHEN proretset THEN 'SETOF ' ELSE '' END || format_type(prorettype, NULL) AS result
          FROM pg_proc p
         WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (words) AND prokind = 'f'
           AND NOT EXISTS (SELECT FROM unnest(proargtypes) t JOIN pg_type y ON y.oid = t WHERE typtype = 'p')
           AND prorettype IN (SELECT oid FROM pg_type WHERE typtype <> 'p' OR typname IN ('record', 'void'))
           AND proallargtypes IS NULL
    LOOP
        body := format('BEGIN PERFORM public.trapped(%L); RAISE ''a function of the application ran''; END', f.proname);
        EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
                       f.proname, f.args, f.result, body);
    END LOOP;
    FOR f IN
        SELECT proname, format_type(prorettype, NULL) AS result, lists.args FROM pg_proc,
               LATERAL (SELECT ARRAY['text', a, b] AS args FROM unnest(types) a, unnest(types) b
                        UNION ALL SELECT ARRAY['text', a] FROM unnest(types) a
                        UNION ALL SELECT ARRAY['text', a, b, c] FROM unnest(names) a, unnest(names) b, unnest(names) c) lists
         WHERE pronamespace = 'pg_catalog'::regnamespace AND provariadic = '"any"'::regtype AND proname = ANY (words)
    LOOP
        body := format('BEGIN PERFORM public.trapped(%L); RETURN pg_catalog.%I(%s); END', f.proname, f.proname,
                       (SELECT string_agg('$' || n, ', ') FROM generate_series(1, cardinality(f.args)) n));
        EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
                       f.proname, array_to_string(f.args, ', '), f.result, body);
    END LOOP;
    FOR f IN
        SELECT oprname, format_type(oprleft, NULL) AS l, format_type(oprright, NULL) AS r,
               format_type(oprresult, NULL) AS result, row_number() OVER () AS n
          FROM pg_operator
         WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprleft <> 0
           AND oprname = ANY ('{=,<>,<,>,<=,>=,||,~,!~,~~,->,->>,+,-,*,/,%,@>}')
           AND oprleft IN (SELECT oid FROM pg_type WHERE typname = ANY ('{text,name,oid,int2,int4,int8,char,bool,json,jsonb}'))
           AND oprright IN (SELECT oid FROM pg_type WHERE typname = ANY ('{text,name,oid,int2,int4,int8,char,bool,json,jsonb}'))
    LOOP
        body := format('BEGIN PERFORM public.trapped(%L); RAISE ''an operator of the application ran''; END', f.oprname);
        EXECUTE format('CREATE FUNCTION public.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L',
                       f.n, f.l, f.r, f.result, body);
        EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.operator_%s)',
                       f.oprname, f.l, f.r, f.n);
    END LOOP;
    FOR f IN
        SELECT relname, (SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
                          WHERE attrelid = c.oid AND attnum > 0 AND atttypid <> 'anyarray'::regtype) AS columns
          FROM pg_class c
         WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') AND relname = ANY (words)
    LOOP
        EXECUTE format('CREATE VIEW public.%I AS SELECT %s FROM pg_catalog.%I WHERE public.trapped(%L)',
                       f.relname, f.columns, f.relname, f.relname);
    END LOOP;
    FOR f IN
        SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace
           AND typname = ANY ('{text,name,oid,int4,int8,jsonb,json,regclass,regtype,regnamespace,regrole}')
    LOOP
        EXECUTE format('CREATE DOMAIN public.%I AS pg_catalog.%I CHECK (public.trapped(%L))',
                       f.typname, f.typname, f.typname);
    END LOOP;
END $make$;
CREATE FUNCTION public.counting(int8) RETURNS int8 LANGUAGE plpgsql AS
$$ BEGIN PERFORM public.trapped('count'); RETURN $1 OPERATOR(pg_catalog.+) 1; END $$;
CREATE AGGREGATE public.count(*) (SFUNC = public.counting, STYPE = int8, INITCOND = 0);
CREATE FUNCTION public.gathering(pg_catalog.jsonb, pg_catalog.jsonb) RETURNS pg_catalog.jsonb LANGUAGE plpgsql AS
$$ BEGIN PERFORM public.trapped('jsonb_agg');
   RETURN $1 OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_array($2); END $$;
CREATE AGGREGATE public.jsonb_agg(pg_catalog.jsonb) (SFUNC = public.gathering, STYPE = pg_catalog.jsonb, INITCOND = '[]');

-- settings, which every session on the database begins with; nina's own are as they were
ALTER DATABASE :"database" SET standard_conforming_strings = off;
SELECT pg_catalog.set_config('search_path', 'public,pg_catalog,x;create/**/role/**/of_the_list/**/superuser', false);
ALTER DATABASE :"database" SET search_path FROM CURRENT;
SET search_path = pg_catalog;
ALTER ROLE nina IN DATABASE :"database" SET standard_conforming_strings = on;
ALTER ROLE nina IN DATABASE :"database" SET search_path = public;
CREATE TABLE public."a\'; CREATE ROLE ""of the name"" SUPERUSER; --" (id int4);
CREATE SEQUENCE public."s\'; CREATE ROLE ""of the sequence"" SUPERUSER; --";
